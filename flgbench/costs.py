"""What the steps of a plan will cost, before any of them runs: GPU-hours, memory of a GPU, disk. Pure functions, no torch.

Time is network passes times the seconds of one: FLOPs by formula over a device's peak and an assumed MFU, or a measured pass
of this machine. Memory is states of all networks over the GPUs, gathered blocks and activations. Disk is the tensors that a
step leaves, and what a training keeps of checkpoints on the way. Only the denoiser's time is told: encoding, decoding,
metrics and waiting in a queue are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from flgbench.interleaving import timed_clips
from flgbench.models.wan_presets import WanCheckpoint, denoiser_size
from flgbench.peaks import PEAKS

if TYPE_CHECKING:
    from flgbench.cells import Step
    from flgbench.plan import Plan
    from flgbench.stage import Footprint

GB = 1e9
FP32, BF16 = 4, 2  # bytes
STATES = 16  # bytes of a trained parameter: fp32 master weight, gradient and Adam's two moments
BUFFERS = 2 * GB  # CUDA context, kernels' workspaces, fragments: an assumption
# Bytes that a block keeps of a token for its backward, per unit of width and of the feed-forward's inner width: of compute
# in bf16, where norms and modulation still are fp32, and in fp32. Counted by saved-tensor hooks on diffusers' Wan block.
Saved = Mapping[int, tuple[float, float]]
SAVED: Saved = {BF16: (68.5, 4.0), FP32: (88.5, 8.0)}


@dataclass(frozen=True)
class Calibration:
    """Seconds of one CPU core, measured: a forward of one clip without gradient and a forward with its backward in the
    small batches of a training, an update of the whole network's weights by the optimiser, and a forward in sampling's
    large batches."""

    forward: float
    trained: float
    update: float
    sampled: float


@dataclass(frozen=True)
class Network:
    """The sizes of a denoiser, without building it. `flops` of a forward of one clip; `clip_bytes` of one encoded clip
    with its condition, as a data step stores it; `pixels` of one clip, all frames and colours.

    Of blocks of several kinds `block_parameters` is the mean, `largest_block` the most; a student of which only the share
    of its blocks is known is taken to have as much of each kind.
    """

    parameters: int
    block_parameters: int
    blocks: int
    width: int
    ffn: int
    tokens: int
    flops: float
    clip_bytes: int
    pixels: int
    adapted: int = 0  # parameters of a LoRA of rank 1
    largest_block: int = 0  # parameters; 0: all are alike
    saved: Saved = field(default_factory=lambda: SAVED)
    calibration: Calibration | None = None  # of a network that a CPU can run, where it was timed

    def kept(self, share: float) -> float:
        """Parameters with `share` of the blocks, of those of the whole network."""
        return 1 - (1 - share) * self.blocks * self.block_parameters / self.parameters


@dataclass(frozen=True)
class Device:
    """Where the steps would run. `mfu` of sampling; `training_mfu` of training, which counts activations computed again."""

    name: str
    peak: float  # dense bf16 FLOP/s
    memory_gb: float
    mfu: float = 0.5
    training_mfu: float = 0.4


# Model in `peaks.PEAKS` and memory in GB, by data sheet. The MFUs are assumptions of these estimates, not measurements.
KNOWN = {"A100": ("A100", 80), "H100": ("H100 80GB HBM3", 80), "H200": ("H200", 141), "B200": ("B200", 180)}
DENSE_BF16 = {known.name: known.tflops["bf16"] * 1e12 for known in PEAKS}
DEVICES = {name: Device(name, DENSE_BF16[model], memory) for name, (model, memory) in KNOWN.items()}
ASSUMED = DEVICES["H100"]
WARM_UP = 5  # timed clips of a latency step besides its conditions


@dataclass(frozen=True)
class Cost:
    """Of one step; None is not known. `seconds` on `gpus` devices (or one core), memory of each of them, `disk` in bytes:
    what is left, `work_disk` what is needed besides while it runs."""

    seconds: float | None
    memory: float | None = None
    disk: float | None = None
    work_disk: float = 0.0
    gpus: int = 1

    @property
    def gpu_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.gpus / 3600


def device_named(name: str) -> Device | None:
    """The known device whose name is in `name`, as 'NVIDIA H100 80GB HBM3'."""
    return next((d for d in DEVICES.values() if d.name in name), None)


def wan(
    config: Mapping[str, Any],
    clip: tuple[int, int, int],
    stride: tuple[int, int],
    text_length: int,
    image_tokens: int = 0,
    per_token_times: bool = False,
) -> Network:
    """Sizes of a `WanTransformer3DModel` with arguments `config` for clips of (frames, height, width) pixels.

    stride: of the autoencoder in time and in space; image_tokens and per_token_times: see `wan_pass_flops`.
    """
    from flgbench.models.flops import wan_pass_flops  # imports torch

    heads, dim, ffn = config["num_attention_heads"], config["attention_head_dim"], config["ffn_dim"]
    width, blocks, text = heads * dim, config["num_layers"], config["text_dim"]
    frames, height, width_px = clip
    latent = ((frames - 1) // stride[0] + 1, height // stride[1], width_px // stride[1])
    patch = tuple(config.get("patch_size", (1, 2, 2)))
    tokens = latent[0] * latent[1] * latent[2] // (patch[0] * patch[1] * patch[2])
    image_dim, size = config.get("image_dim") or 0, denoiser_size(config)
    adapted = 8 * 2 * width + 2 * (width + ffn) + (2 * 2 * width if config.get("added_kv_proj_dim") else 0)
    told = wan_pass_flops(config, ["full"] * blocks, latent, text_length, image_tokens, per_token_times)
    stored = latent[0] * latent[1] * latent[2] * config["in_channels"] + text_length * text + image_tokens * image_dim
    return Network(
        parameters=size.total,
        block_parameters=size.block,
        blocks=blocks,
        width=width,
        ffn=ffn,
        tokens=tokens,
        flops=told.total,
        clip_bytes=FP32 * stored,
        pixels=3 * frames * height * width_px,
        adapted=blocks * adapted,
    )


def wan_checkpoint(facts: WanCheckpoint) -> Network:
    """Sizes of a published checkpoint at its own clip."""
    stride = facts.vae.get("scale_factor_temporal", 4), facts.vae.get("scale_factor_spatial", 8)
    image_tokens = 0
    if facts.image_encoder:
        image_tokens = (facts.image_encoder["image_size"] // facts.image_encoder["patch_size"]) ** 2 + 1
    return wan(facts.transformer, facts.clip, stride, facts.text_length, image_tokens, facts.per_token_times)


def training_memory(
    network: Network, footprint: Footprint, clips: int, shards: int, sized: Mapping[str, Any], accumulate: int = 1
) -> float:
    """Bytes of one GPU of `shards` that train together, with `clips` of the batch on it, at its highest."""
    adapters = footprint.adapter_rank * network.adapted
    trained = footprint.trained * network.parameters + adapters
    bytes_per_value = BF16 if sized.get("precision", "bf16") == "bf16" else FP32
    states = STATES * trained + BF16 * footprint.frozen * network.parameters
    states += FP32 * footprint.student * network.parameters if footprint.ema or sized.get("ema_decay") else 0
    # The parts outside the blocks and two blocks at a time are whole, with the gradients of one block in fp32.
    outside = network.parameters - network.blocks * network.block_parameters
    networks = footprint.trained + footprint.frozen
    block = network.largest_block or network.block_parameters
    gathered = bytes_per_value * (networks * outside + 2 * block) + FP32 * block
    whole_gradients = FP32 * trained if accumulate > 1 and sized.get("defer_reduction", True) and shards > 1 else 0
    kept = activations(network, bool(sized.get("activation_checkpointing", True)), bytes_per_value)
    if sized.get("offload"):
        states = 0.0
    return states / shards + gathered + whole_gradients + clips * footprint.graphs * kept + BUFFERS


def activations(network: Network, checkpointing: bool, bytes_per_value: int = BF16) -> float:
    """Bytes that one clip's forward keeps for the backward; with checkpointing each block's input, and one block whole."""
    of_width, of_ffn = network.saved[bytes_per_value]
    block = network.tokens * (of_width * network.width + of_ffn * network.ffn)
    if not checkpointing:
        return network.blocks * block
    return network.blocks * bytes_per_value * network.tokens * network.width + block


def training_seconds(footprint: Footprint, passes: float, clips: int, calibration: Calibration) -> float:
    """Of one core: `passes` in all, in iterations of `clips` clips that each update the trained weights once."""
    trained_on = passes / footprint.passes  # clips, counted as often as they were drawn
    with_backward = footprint.backwards / 2
    a_clip = (footprint.forwards - with_backward) * calibration.forward + with_backward * calibration.trained
    return trained_on * (a_clip + footprint.trained / clips * calibration.update)


def cost(
    step: Step,
    plan: Plan,
    network: Network | None,
    device: Device | None = None,
    gpus: int = 1,
) -> Cost:
    """Of a step: on `gpus` GPUs like `device` if it trains, on one otherwise; without a device on one core of a CPU, for
    which the network must have been timed."""
    if network is None:
        return Cost(None)
    if step.kind == "train":
        return _training(step, plan, network, device, gpus)
    share = kept_share(step, plan)
    if device:
        a_pass = network.flops / (device.peak * device.mfu)
    else:
        core = _timed(network)
        a_pass = core.sampled if step.kind == "sample" else core.forward
    told, memory = step.settings, None
    if device:
        weights = BF16 * network.parameters * network.kept(share)
        memory = weights + BF16 * network.tokens * (10 * network.width + 2 * network.ffn) + BUFFERS
    if step.kind == "sample":
        clips = told["conditions"] + 7 * min(told["repeated_conditions"], told["conditions"])
        passes = clips * nfe(told.get("sampler")) * share
        return Cost(passes * a_pass, memory if passes else None, clips * network.pixels)
    if step.kind == "latency":
        each = {name: nfe(sampler) for name, sampler in told["samplers"].items()}
        timed, passes = timed_clips(each, told["reference"], told["pairs"]), 0.0
        for name, count in each.items():
            student = step.inputs.get(f"student:{name}")
            passes += count * (timed[name] + WARM_UP) * (kept_share(plan.steps[student], plan) if student else 1.0)
        return Cost(passes * a_pass, memory, 0.0)
    if step.kind == "data" and "count" in told:
        return Cost(None, None, told["count"] * network.clip_bytes)
    return Cost(None)


def _timed(network: Network) -> Calibration:
    if network.calibration is None:
        raise ValueError("this network was not timed on a CPU: its costs are those of a device")
    return network.calibration


def _training(step: Step, plan: Plan, network: Network, device: Device | None, gpus: int) -> Cost:
    from flgbench.registry import resolve

    stage, told = resolve(step.settings["stage"]), step.settings
    settings = stage.Settings.model_validate(told["settings"])
    loop = told.get("loop")
    if loop is None:
        passes = stage.passes(settings, network.blocks)
        a_pass = network.flops / (device.peak * device.mfu) if device else _timed(network).forward
        return Cost(None if passes is None else passes * a_pass)
    footprint: Footprint | None = stage.footprint(settings, kept_share(step, plan))
    if footprint is None:
        return Cost(None)
    footprint = replace(footprint, ema=footprint.ema or bool(stage.ema_decay))
    clips, sized = loop["batch"] * loop["accumulate"], loop.get("sized") or {}
    iterations = loop.get("iterations")
    passes = footprint.passes * clips * iterations if iterations else loop["budget"]
    disk = FP32 * network.parameters * network.kept(footprint.student)
    work = 2 * checkpoint_bytes(network, footprint, sized)  # the old one goes when the new one is whole
    if device is None:
        return Cost(training_seconds(footprint, passes, clips, _timed(network)), None, disk, work)
    shards = min(gpus, loop["batch"])
    memory = training_memory(network, footprint, loop["batch"] // shards, shards, sized, loop["accumulate"])
    again = footprint.backwards / 2 if sized.get("activation_checkpointing", True) else 0.0
    flops = passes * (1 + again / footprint.passes) * network.flops
    return Cost(flops / (device.peak * device.training_mfu * shards), memory, disk, work, shards)


def checkpoint_bytes(network: Network, footprint: Footprint, sized: Mapping[str, Any]) -> float:
    """Of one training checkpoint: trained weights with Adam's moments, what is frozen inside a trained module, an EMA."""
    trained = footprint.trained * network.parameters + footprint.adapter_rank * network.adapted
    averaged = footprint.student * network.parameters if footprint.ema or sized.get("ema_decay") else 0
    beneath = network.parameters if footprint.adapter_rank else 0  # the adapted network's own weights
    return 3 * FP32 * trained + FP32 * averaged + (BF16 if sized else FP32) * beneath


def nfe(sampler: Mapping[str, Any] | None) -> int:
    """Network passes of one clip."""
    if sampler is None:
        return 0
    return sampler["num_inference_steps"] * (2 if sampler["guidance_scale"] != 1 else 1)


def kept_share(step: Step, plan: Plan) -> float:
    """Share of the teacher's blocks in the network that a step trains or samples: what it or a parent says of `keep`."""
    keep = step.settings.get("settings", {}).get("keep") if step.kind == "train" else None
    if keep is not None:
        return float(keep)
    told = [kept_share(plan.steps[key], plan) for key in step.inputs.values() if plan.steps[key].kind == "train"]
    return min(told, default=1.0)
