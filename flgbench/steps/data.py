"""Bring the clips of a run: procedural ones are encoded, a suite's images and prompts too, an encoded set is verified.

Procedural clips: latents, first-frame latents and caption embeddings in one safetensors file. A suite: the same without
latents, with its first frames, and its prompts beside. An encoded set stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from flgbench.cells import Step
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.errors import UsageError
from flgbench.models.base import Condition, VideoModel
from flgbench.steps.loading import CAPTIONS, ENCODED, clips_of, load_teacher, preset_of
from flgbench.store import Store, sha256, write_json

CLIPS_AT_ONCE = 8  # of more the activations leave a CPU's caches


def run(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    if "encoded" in step.settings:
        return _verify(step, folder)
    if "suite" in step.settings:
        return _encode_suite(step, store, folder)
    model, split, count = load_teacher(step), step.settings["split"], step.settings["count"]
    clips = clips_of(step)
    latents, conditions = [], []
    for start in range(0, count, CLIPS_AT_ONCE):
        factors = clips.draw(split, np.arange(start, min(start + CLIPS_AT_ONCE, count)))
        video = shapes.render(factors)
        latents.append(model.encode_video(video))
        told = model.condition(video[:, 0], captions_of(factors))
        conditions.append(model.with_inputs(told, clips.inputs(factors)))
        store.event(step.key, "progress", fraction=min(1.0, (start + CLIPS_AT_ONCE) / count))
    model.release_encoders()  # the process goes on to other steps, which read what is written here
    condition = Condition.concatenate(conditions)
    content = {"latents": torch.cat(latents), **condition.tensors()}
    save_file({k: v.contiguous() for k, v in content.items()}, folder / "clips.safetensors")
    return {"clips": count}


def _verify(step: Step, folder: Path) -> dict[str, Any]:
    """Check every file of an encoded set. Raises UsageError where it is not the one that was planned with, or is damaged."""
    from flgbench.data import encoded

    place = Path(step.location)
    manifest = encoded.read_manifest(place)
    if sha256(place / encoded.MANIFEST) != step.settings["encoded"]:
        raise UsageError(f"--data {place}: has changed since this run was planned: run again")
    if problem := encoded.damage(place):
        raise UsageError(f"--data {place}: {problem}: encode the clips again")
    write_json(folder / ENCODED, {"manifest": step.settings["encoded"], "clips": len(manifest["clips"])})
    return {"clips": len(manifest["clips"])}


def _encode_suite(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    from flgbench.data import suite

    size = preset_of(step).clip[1:]
    prompts = suite.read_suite(Path(step.location), size)[: step.settings["count"]]
    if suite.digest(prompts) != step.settings["suite"]:
        raise UsageError(f"--suite {step.location}: has changed since this run was planned: run again")
    images, captions = torch.from_numpy(suite.images_of(prompts, size)), [prompt.text for prompt in prompts]
    condition = _conditions(load_teacher(step), images, captions, step, store)
    content = {"images": images, **condition.tensors()}
    save_file({k: v.contiguous() for k, v in content.items()}, folder / "clips.safetensors")
    write_json(folder / CAPTIONS, captions)
    return {"clips": len(prompts)}


def _conditions(model: VideoModel, images: torch.Tensor, captions: Sequence[str], step: Step, store: Store) -> Condition:
    """One by one, as clips are encoded: at full size the image encoder's activations fill a device."""
    parts = []
    for i, caption in enumerate(captions):
        parts.append(model.condition(images[i : i + 1], [caption]))
        store.event(step.key, "progress", fraction=(i + 1) / len(captions))
    return Condition.concatenate(parts)
