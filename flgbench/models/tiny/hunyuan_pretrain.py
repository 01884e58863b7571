"""Make the tiny hunyuan teacher: text encoders, then denoiser and autoencoder, then the diffusers folder.

It needs the tiny wanx teacher, whose latent space and whose velocities it learns. Every part resumes from the work folder,
so an interrupted pretraining continues with the same command. Given two cores, autoencoder and denoiser train side by side;
a denoiser that is trained on has both.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from flgbench.data import shapes
from flgbench.models.families import WanXFamily
from flgbench.models.hunyuan import Hunyuan
from flgbench.models.stock import save_pipeline, tidy_folder
from flgbench.models.tiny import hunyuan, hunyuan_text, hunyuan_vae, wanx
from flgbench.models.wanx import WanX
from flgbench.shipped import HASHES, write_hashes
from flgbench.store import sha256

CLIPS = 4096
START = "start.safetensors"
VAE_CHECKPOINT = "vae-checkpoint.safetensors"


def load(folder: Path) -> Hunyuan:
    """The teacher in `folder`."""
    return Hunyuan.load(folder)


def pretrain(work: Path, processes: int) -> Hunyuan:
    """Train what is not trained yet in `work`, on `processes` cores, and return the teacher."""
    work.mkdir(parents=True, exist_ok=True)
    _guide_latents(work)
    hunyuan_text.train(work)
    if (work / START).exists():
        train_denoiser(work, threads=processes)
    elif processes > 1:
        context = multiprocessing.get_context("spawn")
        beside = context.Process(target=train_vae, args=(work,), daemon=True)
        beside.start()
        train_denoiser(work)
        beside.join()
        if beside.exitcode:
            raise RuntimeError(f"the training of the autoencoder ended with exit code {beside.exitcode}")
    else:
        train_vae(work)
        train_denoiser(work)
    return load_trained(work)


def start_from(weights: Path, work: Path) -> None:
    """Let the pretraining in `work` go on from a teacher's folder: its denoiser is trained on, the other parts stay.

    What the teacher was told by its own recipe is kept beside it. Does nothing in a work folder that has begun already.
    """
    if (work / START).exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    model = Hunyuan.load(weights)
    hunyuan_text.save(model.reader, work)
    shutil.copy(weights / "recipe.json", work / "start-recipe.json")
    for log in weights.glob("*-log.jsonl"):
        shutil.copy(log, work / (f"start-{log.name}" if log.name.endswith("dit-log.jsonl") else log.name))
    parts = {"vae": model.vae, "transformer": model.transformer}
    weights_of = {f"{name}/{k}": v.clone() for name, module in parts.items() for k, v in module.state_dict().items()}
    save_file(weights_of, work / START)


def _recipe_before(work: Path) -> dict[str, Any] | None:
    """The recipe of the teacher that is trained on in `work`, or None."""
    return json.loads((work / "start-recipe.json").read_text()) if (work / START).exists() else None


def _seed(before: dict[str, Any] | None) -> int:
    """Of the denoiser's training: how many came before it, so none sees the clips and the noise of another."""
    return hunyuan.SEED if before is None else 1 + _seed(before.get("continued_from"))


def _guide() -> WanX:
    model = WanXFamily().load("tiny")
    assert isinstance(model, WanX)
    return model


def _guide_latents(work: Path) -> dict[str, torch.Tensor]:
    """Tiny wanx's latents of the first training clips, encoded once: `video` and `image`, (CLIPS, 16, 5, 8, 8) fp16."""
    path = work / "latents.safetensors"
    if not path.exists():
        save_file(wanx.encode_clips(_guide(), "train", 0, CLIPS), path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
    return load_file(path)


def train_vae(work: Path) -> None:
    """The autoencoder in `work`, to the end."""
    torch.set_num_threads(1)
    hunyuan_vae.train(_guide_latents(work)["video"], work)


def train_denoiser(work: Path, threads: int = 1) -> None:
    """The denoiser in `work`, to the end."""
    torch.set_num_threads(threads)
    model = hunyuan.build(hunyuan_vae.build(), hunyuan_text.train(work))
    before = _recipe_before(work)
    if before is not None:
        model.transformer.load_state_dict(_under(work / START, "transformer/"))
    steps = hunyuan.STEPS if before is None else hunyuan.CONTINUED_STEPS
    data = _guide_latents(work)
    hunyuan.train(model, _guide(), data, work, steps, continued=before is not None, seed=_seed(before))


def load_trained(work: Path) -> Hunyuan:
    """The EMA model of the latest checkpoints in `work`."""
    vae = hunyuan_vae.build()
    started = (work / START).exists()
    vae.load_state_dict(_under(work / START, "vae/") if started else _under(work / VAE_CHECKPOINT, "module/vae/"))
    model = hunyuan.build(vae.requires_grad_(False).eval(), hunyuan_text.train(work))
    return hunyuan.with_weights(model, _under(work / "dit-checkpoint.safetensors", "tensor/"))


def _under(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in load_file(path).items() if k.startswith(prefix)}


def _steps_done(checkpoint: Path) -> int:
    return int(load_file(checkpoint)["scalar/step"].item())


def export(model: Hunyuan, work: Path, folder: Path) -> None:
    """Write the diffusers folder that the stock I2V pipeline loads, with logs, recipe and hashes.

    Denoiser and autoencoder are stored in fp16 (they are computed in fp32), the small rest in fp32.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_folder(model, FlowMatchEulerDiscreteScheduler(shift=hunyuan.SHIFT), partial)
    before = _recipe_before(work)
    recipe: dict[str, Any] = {
        "guide": {"model": "wanx tiny", "sha256": sha256(WanXFamily().folder("tiny") / HASHES)},
        "vae": before["vae"]
        if before
        else {
            "config": hunyuan_vae.CONFIG,
            "steps": hunyuan_vae.STEPS,
            "trained": _steps_done(work / VAE_CHECKPOINT),
            "phases": hunyuan_vae.PHASES,
            "seed": hunyuan_vae.SEED,
        },
        "text": {
            "language": hunyuan_text.LANGUAGE,
            "vision": hunyuan_text.VISION,
            "pooled": hunyuan_text.POOLED,
            "steps": hunyuan_text.STEPS,
            "batch": hunyuan_text.BATCH,
            "seed": hunyuan_text.SEED,
        },
        "transformer": hunyuan.TRANSFORMER,
        "training": {
            "steps": hunyuan.CONTINUED_STEPS if before else hunyuan.STEPS,
            "trained": _steps_done(work / "dit-checkpoint.safetensors"),
            "clips": CLIPS,
            "batch": hunyuan.BATCH,
            "muon_lr": hunyuan.MUON_LR,
            "adam_lr": hunyuan.ADAM_LR,
            "ema": hunyuan.EMA_DECAY,
            "shift": hunyuan.SHIFT,
            "caption_dropout": hunyuan.CAPTION_DROPOUT,
            "emphasis": hunyuan.EMPHASIS,
            "block_drop": hunyuan.BLOCK_DROP,
            "guided": hunyuan.GUIDED,
            "guidance": hunyuan.GUIDANCE,
            "seed": _seed(before),
        },
        "command": "flgbench pretrain --model hunyuan",
    }
    if before:
        own = {"own_states": hunyuan.OWN_SHARE, "own_steps": hunyuan.OWN_STEPS, "lr_share": hunyuan.CONTINUED_LR}
        recipe["training"] |= own
        recipe["command"] += " --continue-from FOLDER"
        recipe["continued_from"] = before
    (partial / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    for log in sorted(work.glob("*-log.jsonl")):
        shutil.copy(log, partial / log.name)
    write_hashes(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def write_folder(model: Hunyuan, scheduler: Any, folder: Path) -> None:
    """The diffusers folder of a tiny model, with what `Hunyuan.load` reads beside its parts."""
    save_pipeline(model, scheduler, folder)
    model.copy().transformer.half().save_pretrained(folder / "transformer")
    vae = hunyuan_vae.build()
    vae.load_state_dict(model.vae.state_dict())
    vae.half().save_pretrained(folder / "vae")
    description = {
        "clip_shape": list(model.clip_shape),
        "text_length": model.text_length,
        "negative_caption": model.negative_caption,
        "prompt_template": model.reader.template,
        "fps": shapes.FPS,
    }
    (folder / "flgbench.json").write_text(json.dumps(description, indent=1) + "\n")
    tidy_folder(folder)
