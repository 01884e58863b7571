"""Make the tiny teachers from nothing: autoencoder, then text encoder and denoiser, then the diffusers folder.

Every part resumes from the work folder, so an interrupted pretraining continues with the same command.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from flgbench.data import shapes
from flgbench.models.folded_conv import fold_convolutions
from flgbench.models.stock import save_pipeline, tidy_folder
from flgbench.models.tiny import parallel, wanx, wanx_vae
from flgbench.models.wanx import WanX
from flgbench.shipped import write_hashes
from flgbench.store import sha256

CLIPS, STEPS = 32_768, 6_000
START = "start.safetensors"  # in the work folder: weights that the denoiser goes on from


def load(folder: Path) -> WanX:
    """The teacher in `folder`."""
    return WanX.load(folder)


def set_latent_statistics(vae: AutoencoderKLWan, clips: int = 512) -> None:
    """Store the mean and standard deviation of each latent channel in the autoencoder's config, as Wan's does."""
    video = shapes.render(shapes.draw_factors("train", np.arange(clips)))
    with torch.no_grad():
        parts = [vae.encode(wanx_vae.to_model_range(v)).latent_dist.mode() for v in video.split(32)]
    latents = torch.cat(parts)
    vae.register_to_config(latents_mean=latents.mean((0, 2, 3, 4)).tolist(), latents_std=latents.std((0, 2, 3, 4)).tolist())


def pretrain(work: Path, processes: int) -> WanX:
    """Train what is not trained yet in `work`, on `processes` cores, and return the teacher."""
    parallel.launch(_train_vae, processes, work)
    parallel.launch(_encode, processes, work)
    parallel.launch(_train_denoiser, processes, work)
    return load_trained(work)


def start_from(weights: Path, work: Path) -> None:
    """Let the pretraining in `work` go on from a teacher's folder: its autoencoder stays, its denoiser is trained on.

    What the teacher was told by its own recipe is kept beside it. Does nothing in a work folder that has begun already.
    """
    if (work / START).exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    shutil.copytree(weights / "vae", work / "vae", dirs_exist_ok=True)
    shutil.copy(weights / "vae-log.jsonl", work)
    shutil.copy(weights / "recipe.json", work / "start-recipe.json")
    shutil.copy(weights / "dit-log.jsonl", work / "start-dit-log.jsonl")
    start = wanx.weights_of(WanX.load(weights))
    save_file({k: v.clone() for k, v in start.items()}, work / START)  # clone: the embedding is in there twice


def _train_vae(work: Path) -> None:
    if (work / START).exists():
        return
    vae = wanx_vae.train(work)
    if parallel.rank() == 0:
        set_latent_statistics(vae)
        vae.save_pretrained(work / "vae")


def _vae(work: Path) -> AutoencoderKLWan:
    vae = AutoencoderKLWan.from_pretrained(work / "vae", torch_dtype=torch.float32)
    return fold_convolutions(vae).requires_grad_(False).eval()


def _encode(work: Path) -> None:
    """Each process encodes its contiguous part of the clips."""
    part = parallel.rank()
    path = work / f"latents-{part}.safetensors"
    if path.exists():
        return
    share = CLIPS // parallel.processes()
    partial = path.with_suffix(".partial")
    save_file(wanx.encode_clips(wanx.build(_vae(work)), "train", part * share, share), partial)
    partial.replace(path)


def _latents(work: Path) -> dict[str, torch.Tensor]:
    paths = sorted(work.glob("latents-*.safetensors"))
    parts = [load_file(p) for p in paths]
    return {key: torch.cat([p[key] for p in parts]) for key in ("video", "image")}


def _train_denoiser(work: Path) -> None:
    model = wanx.build(_vae(work))
    if (work / START).exists():
        model = wanx.with_weights(model, load_file(work / START))
    wanx.train(model, _latents(work), work, STEPS)


def load_trained(work: Path) -> WanX:
    """The EMA model of the latest checkpoint in `work`."""
    model = wanx.build(_vae(work))
    saved = load_file(work / "dit-checkpoint.safetensors")
    prefix = "tensor/"
    return wanx.with_weights(model, {k[len(prefix) :]: v for k, v in saved.items() if k.startswith(prefix)})


def export(model: WanX, work: Path, folder: Path) -> None:
    """Write the diffusers folder that the stock `WanImageToVideoPipeline` loads, with logs, recipe and hashes.

    The denoiser is stored in fp16 (it is computed in fp32), the small rest in fp32.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_pipeline(model, FlowMatchEulerDiscreteScheduler(shift=wanx.SHIFT), partial)
    half = model.copy().transformer.half()
    half.save_pretrained(partial / "transformer")
    description = {
        "clip_shape": list(model.clip_shape),
        "text_length": model.text_length,
        "negative_caption": model.negative_caption,
        "fps": shapes.FPS,
    }
    (partial / "flgbench.json").write_text(json.dumps(description, indent=1) + "\n")
    command = "flgbench pretrain --model wanx"
    recipe: dict[str, Any] = {
        "vae": {"config": wanx_vae.CONFIG, "steps": wanx_vae.STEPS, "phases": wanx_vae.PHASES, "seed": wanx_vae.SEED},
        "transformer": wanx.TRANSFORMER,
        "text_encoder": wanx.TEXT,
        "training": {
            "steps": STEPS,
            "clips": CLIPS,
            "batch": wanx.BATCH,
            "muon_lr": wanx.MUON_LR,
            "adam_lr": wanx.ADAM_LR,
            "ema": wanx.EMA_DECAY,
            "shift": wanx.SHIFT,
            "caption_dropout": wanx.CAPTION_DROPOUT,
            "block_drop": wanx.BLOCK_DROP,
            "seed": wanx.SEED,
        },
        "command": command,
    }
    if (work / START).exists():
        recipe["command"] = f"{command} --continue-from FOLDER"
        recipe["continued_from"] = {
            "sha256": sha256(work / START),
            "recipe": json.loads((work / "start-recipe.json").read_text()),
        }
    (partial / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n")
    for log in ("vae-log.jsonl", "dit-log.jsonl", "start-dit-log.jsonl"):
        if (work / log).exists():
            shutil.copy(work / log, partial / log)
    tidy_folder(partial)
    write_hashes(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
