"""The stock diffusers pipeline around our models: schedulers that reproduce our times, and the folder it loads.

The stock schedulers space times their own way: FlowMatchEuler's last time before 0 is 1/1000, shifted twice. Their
`shift_terminal` stretches the shifted times linearly around 1, and a stretched shift of another amount is our shift again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from flgbench.errors import UsageError
from flgbench.models.base import VideoModel
from flgbench.sampling import SamplerSettings

TRAIN_STEPS = 1000  # diffusers counts time in thousandths
AGREEMENT = 1e-6  # fp32 times that differ by less are the same


def scheduler_for(settings: SamplerSettings, even_times: bool = False) -> Any:
    """The stock scheduler whose `set_timesteps(settings.num_inference_steps)` gives `settings.schedule()`.

    With `even_times` it does so for a pipeline that hands it even times itself.

    'renoise' is FlowMatchEuler's stochastic sampling: estimate x0, renoise. Raises UsageError where no stock scheduler
    has these times.
    """
    shift, terminal = (settings.shift, None) if even_times else stock_shift(settings)
    scheduler: Any
    if settings.kind == "unipc":
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, shift_terminal=terminal
        )
    else:
        scheduler = FlowMatchEulerDiscreteScheduler(
            shift=shift, shift_terminal=terminal, stochastic_sampling=settings.kind == "renoise"
        )
    steps = settings.num_inference_steps
    if even_times:
        scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1])
    else:
        scheduler.set_timesteps(steps)
    # UniPC keeps its first time 1e-6 below 1, where its logarithms are finite.
    if not torch.allclose(scheduler.sigmas, settings.schedule(), rtol=0, atol=2 * AGREEMENT):
        raise UsageError(
            f"no stock scheduler has the times of {settings.num_inference_steps} steps with shift {settings.shift:g}: "
            f"the stock spacing ends at 1/{TRAIN_STEPS}"
        )
    return type(scheduler).from_config(scheduler.config)


def stock_shift(settings: SamplerSettings) -> tuple[float, float | None]:
    """`shift` and `shift_terminal` with which the stock scheduler has our times.

    Both sides count w = 1 - u from noise on: ours are w_i = i / n, the stock's w_i = i a. A shift maps w to
    w / (s - (s - 1) w), a stretch multiplies, so the two agree where (s' - 1) a / s' = (s - 1) / (s n).
    """
    steps, shift = settings.num_inference_steps, settings.shift
    if steps == 1:
        return shift, None
    bend = (shift - 1) / (shift * steps)
    found = shift
    for _ in range(50):  # the spacing depends on the shift itself, but little: some 1/1000
        found = 1 / max(1 - bend / _spacing(settings, found), AGREEMENT)
    return found, settings.schedule()[-2].item()


def _spacing(settings: SamplerSettings, shift: float) -> float:
    """Distance of the stock scheduler's times before shifting."""
    last = 1 / TRAIN_STEPS
    if settings.kind == "unipc":
        return (1 - last) / settings.num_inference_steps
    last = shift * last / (1 + (shift - 1) * last)  # it starts from its own shifted end and shifts again
    return (1 - last) / (settings.num_inference_steps - 1)


def save_pipeline(model: VideoModel, scheduler: Any, folder: Path) -> None:
    """Write `model` as the folder that its family's stock pipeline loads, without this machine's paths."""
    model.stock_pipeline(scheduler).save_pretrained(folder)


def tidy_folder(folder: Path) -> None:
    """Take out the folders that diffusers notes its parts were loaded from, and make every file readable."""
    for path in [*folder.rglob("config.json"), folder / "model_index.json"]:
        kept = {k: v for k, v in json.loads(path.read_text()).items() if k != "_name_or_path"}
        path.write_text(json.dumps(kept, indent=2) + "\n")
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
