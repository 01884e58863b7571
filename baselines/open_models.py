"""Other open image-to-video models (the paper's Table 1), each through its own diffusers pipeline.

Their clips are made comparable by two rules. Pictures are scaled to cover the wanted size and cropped around their centre
(`flgbench.inputs.fit`): the first frame to the model's size, its frames to the comparison's. Frames are chosen by time, the
nearest one; a clip shorter than the comparison's is played slower, evenly, and `slowed` says by how much.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from flgbench.contracts import OpenClip, OpenModel
from flgbench.errors import UsageError
from flgbench.inputs import fit
from flgbench.settings import Settings
from flgbench.store import sha256

INDEX, READ = "model_index.json", (".json", ".safetensors", ".txt", ".model")


class OpenSettings(Settings):
    """What is not given is as the pipeline has it."""

    checkpoint: str | None = Field(None, description="diffusers pipeline folder, or hub id of one in the local cache")
    revision: str | None = Field(None, description="of a hub id: commit, branch or tag; default: main as it is cached")
    num_inference_steps: int | None = Field(None, ge=1)
    guidance_scale: float | None = Field(None, ge=1.0)
    num_frames: int | None = Field(None, ge=2)
    height: int | None = Field(None, ge=8, multiple_of=8)
    width: int | None = Field(None, ge=8, multiple_of=8)
    fps: float = Field(8.0, gt=0, description="rate at which its frames are meant to be shown")


class Watch:
    """Notes of a running pipeline: its denoiser's passes (a clip in a batch counts one) and when the stages began."""

    def __init__(self, denoiser: Any, decoder: Any) -> None:
        self.handles = [
            denoiser.register_forward_pre_hook(self._denoises, with_kwargs=True),
            decoder.register_forward_pre_hook(lambda *_: self._mark("decode")),
        ]
        self.passes = 0
        self.began = {"text": now()}

    def _denoises(self, module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._mark("denoise")
        self.passes += len(inputs[0] if inputs else named["hidden_states"])

    def _mark(self, stage: str) -> None:
        if stage not in self.began:
            self.began[stage] = now()

    def finish(self) -> dict[str, float]:
        """Seconds of each stage until now; text_s holds everything before the first pass, images encoded too."""
        for handle in self.handles:
            handle.remove()
        marks = [self.began["text"], self.began["denoise"], self.began["decode"], now()]
        names = ("text_s", "denoise_s", "decode_s")
        stages = {name: b - a for name, a, b in zip(names, marks[:-1], marks[1:], strict=True)}
        return stages | {"end_to_end_s": marks[-1] - marks[0]}


class PipelineModel(OpenModel):
    """What the models share. `denoiser` names the pipeline's component whose passes count."""

    Settings = OpenSettings
    name: ClassVar[str]
    hub: ClassVar[str]  # where the public weights are, for the message that asks for them
    pipeline: ClassVar[str]  # class of diffusers
    denoiser: ClassVar[str]
    dtype: ClassVar[torch.dtype]  # on a GPU; fp32 elsewhere

    def fingerprint(self) -> Mapping[str, str]:
        return fingerprint(self.folder)

    @cached_property
    def folder(self) -> Path:
        """The pipeline's folder, looked at: right class, every component there, no pickle. Raises UsageError."""
        owner, checkpoint = f"--set {self.name}.checkpoint", self.settings.checkpoint
        if checkpoint is None:
            raise UsageError(
                f"baseline '{self.name}' needs weights: {owner}=FOLDER, a diffusers pipeline folder, or a hub id that is in "
                f"the local cache, such as {self.hub}"
            )
        folder = Path(checkpoint).expanduser()
        folder = folder.resolve() if folder.exists() else _cached(checkpoint, self.settings.revision, owner)
        if not (folder / INDEX).exists():
            raise UsageError(f"{owner}={checkpoint}: no {INDEX} in {folder}: it is no pipeline folder of diffusers")
        index = json.loads((folder / INDEX).read_text())
        if index["_class_name"] != self.pipeline:
            raise UsageError(f"{owner}={checkpoint}: holds a {index['_class_name']}, needed is a {self.pipeline}")
        for part in _components(index):
            if not (folder / part).is_dir():
                raise UsageError(f"{owner}={checkpoint}: {part} is missing in {folder}")
        for part in (self.denoiser, "vae"):
            if not any((folder / part).glob("*.safetensors")):
                raise UsageError(f"{owner}={checkpoint}: no .safetensors in {folder / part}: nothing pickled is read")
        return folder

    @cached_property
    def pipe(self) -> Any:
        import diffusers
        import transformers

        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
        gpu = torch.cuda.is_available()
        pipe = getattr(diffusers, self.pipeline).from_pretrained(
            self.folder, torch_dtype=self.dtype if gpu else torch.float32, use_safetensors=True, local_files_only=True
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe.to("cuda" if gpu else "cpu")

    @abstractmethod
    def arguments(self, caption: str) -> dict[str, Any]:
        """What the pipeline is called with besides picture, size and generator."""

    @abstractmethod
    def native_size(self) -> tuple[int, int, int]:
        """Frames, height and width of the clips that it is asked for."""

    def make(self, first_frame: torch.Tensor, caption: str, seed: int) -> OpenClip:
        size = self.native_size()
        picture = Image.fromarray(fit(Image.fromarray(first_frame.numpy()), size[1:]))
        network = getattr(self.pipe, self.denoiser)
        watch = Watch(network, self.pipe.vae.decoder)
        made = self.pipe(
            image=picture,
            num_frames=size[0],
            height=size[1],
            width=size[2],
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            **self.arguments(caption),
        ).frames[0]
        frames = (made * 255).round().astype(np.uint8)
        seconds = watch.finish()
        wanted, height, width = self.preset.clip
        chosen, slowed = frame_indices(len(frames), self.settings.fps, wanted, self.preset.fps)
        video = np.stack([fit(Image.fromarray(frames[i]), (height, width)) for i in chosen])
        facts = {
            "pipeline": self.pipeline,
            "nfe": watch.passes,
            "num_inference_steps": self.pipe.num_timesteps,
            "parameters": sum(p.numel() for p in network.parameters()),
            "dtype": str(network.dtype).removeprefix("torch."),
            "fps": self.settings.fps,
            "native_size": [len(frames), *frames.shape[1:3]],
            "slowed": round(slowed, 3),
        }
        return OpenClip(torch.from_numpy(video), seconds, facts)


class CogVideoXI2V(PipelineModel):
    """CogVideoX image-to-video (arXiv 2408.06072) through its diffusers pipeline; needs a checkpoint."""

    label = "CogVideoX-I2V"
    changes = "another model: CogVideoX"
    name = "cogvideox-i2v"
    hub = "zai-org/CogVideoX-5b-I2V"
    pipeline = "CogVideoXImageToVideoPipeline"
    denoiser = "transformer"
    dtype = torch.bfloat16

    def native_size(self) -> tuple[int, int, int]:
        config, scale, s = self.pipe.transformer.config, self.pipe.vae_scale_factor_spatial, self.settings
        height, width = s.height or config.sample_height * scale, s.width or config.sample_width * scale
        return s.num_frames or config.sample_frames, height, width

    def arguments(self, caption: str) -> dict[str, Any]:
        given = {k: getattr(self.settings, k) for k in ("num_inference_steps", "guidance_scale")}
        told = {k: v for k, v in given.items() if v is not None}
        return told | {"prompt": caption, "max_sequence_length": self.pipe.transformer.config.max_text_seq_length}


class SVDSettings(OpenSettings):
    """`guidance_scale` is that of the last frame; the first has 1 and those between what lies between."""

    height: int | None = Field(576, ge=8, multiple_of=8, description="diffusers' default")
    width: int | None = Field(1024, ge=8, multiple_of=8, description="diffusers' default")
    fps: float = Field(7.0, gt=0, description="told to the model too; diffusers' default")


class SVDXT(PipelineModel):
    """Stable Video Diffusion XT (arXiv 2311.15127) through its diffusers pipeline; reads no caption; needs a checkpoint."""

    label = "SVD-XT"
    changes = "another model: Stable Video Diffusion, without captions"
    Settings = SVDSettings
    name = "svd-xt"
    hub = "stabilityai/stable-video-diffusion-img2vid-xt"
    pipeline = "StableVideoDiffusionPipeline"
    denoiser = "unet"
    dtype = torch.float16

    def native_size(self) -> tuple[int, int, int]:
        s = self.settings
        return s.num_frames or self.pipe.unet.config.num_frames, s.height or 576, s.width or 1024

    def arguments(self, caption: str) -> dict[str, Any]:
        s = self.settings
        given = {"num_inference_steps": s.num_inference_steps, "max_guidance_scale": s.guidance_scale}
        return {k: v for k, v in given.items() if v is not None} | {"fps": round(s.fps)}


def frame_indices(native: int, native_fps: float, wanted: int, wanted_fps: float) -> tuple[list[int], float]:
    """For each of `wanted` frames the native one that is nearest in time, and how many times slower they are played.

    1 where the native clip is long enough; otherwise its last frame becomes the last one wanted.
    """
    span, have = (wanted - 1) / wanted_fps, (native - 1) / native_fps
    slowed = max(1.0, span / have)
    return [round(i / wanted_fps / slowed * native_fps) for i in range(wanted)], slowed


def now() -> float:
    """Seconds, after everything queued on a device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def fingerprint(folder: Path) -> dict[str, str]:
    """What identifies a pipeline's files: a hub snapshot's commit, or the sha256 of each file that may be read."""
    if folder.parent.name == "snapshots":
        return {"revision": folder.name}
    parts = [folder / INDEX, *(folder / part for part in _components(json.loads((folder / INDEX).read_text())))]
    files = [f for part in parts for f in ([part] if part.is_file() else sorted(part.rglob("*"))) if f.suffix in READ]
    return {str(f.relative_to(folder)): _sha256(f, f.stat().st_mtime_ns, f.stat().st_size) for f in files}


@lru_cache
def _sha256(file: Path, changed: int, size: int) -> str:
    """Once a process: a plan is made several times, and weights are large."""
    return sha256(file)


def _components(index: Mapping[str, Any]) -> list[str]:
    """Folders that a model_index.json asks for."""
    return [name for name, value in index.items() if isinstance(value, list) and value[0]]


def _cached(hub_id: str, revision: str | None, owner: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except HFValidationError:
        raise UsageError(f"{owner}={hub_id}: no such folder") from None
    except LocalEntryNotFoundError:
        wanted = f" --revision {revision}" if revision else ""
        raise UsageError(
            f"{owner}={hub_id}: no such folder, and not in the local cache: `hf download {hub_id}{wanted}` fetches it"
        ) from None
