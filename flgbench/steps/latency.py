"""Time all cells of a comparison in one process, interleaved condition by condition (evaluation.md 4.3).

Per condition, in a seeded random order of cells: text and image encoding, denoising, decoding to uint8, each with the
device synchronised on both sides. Warm-up repeats until three runs agree within 2 % (10 runs at most, and none more once
a cell has taken `WARM_SECONDS`: a slow one has then made a hundred passes). Batch 1.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from flgbench import open_models
from flgbench.models.base import VideoModel
from flgbench.models.cache import FirstBlockCache
from flgbench.plan import Step
from flgbench.sampling import SamplerSettings, build_cache, generate
from flgbench.steps.loading import evaluated, load_denoiser, load_teacher, preset_of
from flgbench.store import Store, write_json

WARM_SECONDS = 1.0
BATCHED_EVERY = 4  # conditions: batched guidance of the reference is a side figure
STAGES = ("text_s", "denoise_s", "decode_s", "end_to_end_s")


def run(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    settings = step.settings
    torch.set_num_threads(settings["threads"])
    told = evaluated(step, store, settings["pairs"])
    images, captions = told.first_frames, told.captions
    teacher = load_teacher(step)
    models = {name: load_denoiser(step, store, f"student:{name}") for name in settings["samplers"]}
    samplers = {name: SamplerSettings.model_validate(s) for name, s in settings["samplers"].items()}
    timers: dict[str, Callable[..., dict[str, float]]] = {
        name: partial(time_clip, models[name], sampler, cache=build_cache(models[name], sampler))
        for name, sampler in samplers.items()
    }
    for name, content in settings.get("generators", {}).items():
        timers[name] = partial(open_models.time_clip, open_models.load(content, preset_of(step)))
    reference = settings["reference"]

    rows, warmups = [], {}
    for name in timers:
        warmups[name] = warm_up(partial(timers[name], images[:1], captions[:1], 0))
    order = random.Random(0)
    for pair in range(settings["pairs"]):
        names = list(timers)
        order.shuffle(names)
        for name in names:
            one = slice(pair, pair + 1)
            times = timers[name](images[one], captions[one], pair)
            rows += [{"cell": name, "condition": pair, "metric": k, "value": v} for k, v in times.items()]
            if name == reference and pair % BATCHED_EVERY == 0:
                batched = timers[name](images[one], captions[one], pair, batched_cfg=True)
                rows.append(
                    {"cell": name, "condition": pair, "metric": "denoise_batched_cfg_s", "value": batched["denoise_s"]}
                )
        store.event(step.key, "progress", fraction=(pair + 1) / settings["pairs"])
    # ru_maxrss is the process's highest resident memory, in KiB on Linux; all cells share the process.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    table = pd.DataFrame(rows).assign(sample=0, unit="s", higher_is_better=False, status="ok", reason="")
    unknown = {"condition": -1, "metric": "peak_memory_mb", "value": float("nan"), "sample": 0, "unit": "MB"}
    why = f"all cells share one process on a CPU: its peak was {peak:.0f} MB"
    cells = [unknown | {"cell": name, "higher_is_better": False, "status": "missing", "reason": why} for name in timers]
    table = pd.concat([table, pd.DataFrame(cells)], ignore_index=True)
    table.to_parquet(folder / "results.parquet")
    write_json(folder / "warmups.json", warmups)
    return {"process_peak_memory_mb": round(peak, 1), "teacher_parameters": teacher.n_parameters}


def warm_up(once: Callable[[], dict[str, float]], most: int = 10) -> dict[str, Any]:
    """Repeat until the last three end-to-end times agree within 2 %; returns the runs made and whether they agreed."""
    seconds: list[float] = []
    while True:
        seconds.append(once()["end_to_end_s"])
        last = seconds[-3:]
        settled = len(last) == 3 and max(last) <= 1.02 * min(last)
        if settled or len(seconds) == most or sum(seconds) > WARM_SECONDS:
            return {"runs": len(seconds), "settled": settled}


@torch.inference_mode()
def time_clip(
    model: VideoModel,
    sampler: SamplerSettings,
    image: torch.Tensor,
    caption: list[str],
    condition: int,
    batched_cfg: bool = False,
    cache: FirstBlockCache | None = None,
) -> dict[str, float]:
    """Seconds of each stage for one clip."""
    marks = [now()]
    told = model.condition(image, caption)
    marks.append(now())
    latents, _ = generate(model, told, [(condition, 0)], sampler, batched_cfg, cache)
    marks.append(now())
    model.decode(latents)
    marks.append(now())
    text, denoise, decode = (b - a for a, b in zip(marks[:-1], marks[1:], strict=True))
    return dict(zip(STAGES, (text, denoise, decode, marks[-1] - marks[0]), strict=True))


def now() -> float:
    """Seconds, after everything queued on a device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
