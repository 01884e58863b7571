"""Time all cells of a comparison in one process, interleaved condition by condition (evaluation.md 4.3).

Slow cells besides the reference are timed in every other condition, see `interleaving`.

Warm-up repeats a clip until three runs agree within 2 % (10 runs at most, and none more once a cell has taken
`timing.WARM_SECONDS`: a slow one has then made a hundred passes).
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from flgbench import open_models
from flgbench.cells import Step
from flgbench.interleaving import interleaved, seldom_timed
from flgbench.sampling import SamplerSettings, build_cache
from flgbench.steps.loading import evaluated, load_denoiser, load_teacher, preset_of
from flgbench.store import Store, write_json
from flgbench.timing import DeviceMemory, time_clip, warm_up, weight_bytes

BATCHED_EVERY = 4  # conditions: batched guidance of the reference is a side figure


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

    def inputs_of(pairs: slice) -> dict[str, torch.Tensor]:
        return {name: value[pairs] for name, value in told.inputs.items()}

    def first_clip(name: str) -> float:
        return timers[name](images[:1], captions[:1], 0, inputs=inputs_of(slice(0, 1)))["end_to_end_s"]

    warmups = {name: warm_up(partial(first_clip, name)) for name in timers}
    rows, peaks = [], dict[str, float]()
    seldom = seldom_timed({name: sampler.nfe for name, sampler in samplers.items()}, settings["reference"])
    order = list(interleaved(list(timers), settings["pairs"], seldom))
    for done, (pair, name) in enumerate(order, start=1):
        one = slice(pair, pair + 1)
        with DeviceMemory() as memory:
            times = timers[name](images[one], captions[one], pair, inputs=inputs_of(one))
        if memory.growth is not None and name in models:
            peaks[name] = max(peaks.get(name, 0.0), (weight_bytes(models[name]) + memory.growth) / 2**20)
        rows += [{"cell": name, "condition": pair, "metric": k, "value": v} for k, v in times.items()]
        if name == settings["reference"] and pair % BATCHED_EVERY == 0:
            batched = timers[name](images[one], captions[one], pair, batched_cfg=True, inputs=inputs_of(one))
            rows.append({"cell": name, "condition": pair, "metric": "denoise_batched_cfg_s", "value": batched["denoise_s"]})
        if done % len(timers) == 0:
            store.event(step.key, "progress", fraction=done / len(order))
    # ru_maxrss is the process's highest resident memory, in KiB on Linux; all cells share the process.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    table = pd.DataFrame(rows).assign(sample=0, unit="s", higher_is_better=False, status="ok", reason="")
    memory_row = {"condition": -1, "metric": "peak_memory_mb", "sample": 0, "unit": "MB", "higher_is_better": False}
    why = f"all cells share one process on a CPU: its peak was {peak:.0f} MB"
    unknown = {"value": float("nan"), "status": "missing", "reason": why}
    known = {name: {"value": found, "status": "ok", "reason": ""} for name, found in peaks.items()}
    cells = [memory_row | {"cell": name} | known.get(name, unknown) for name in timers]
    table = pd.concat([table, pd.DataFrame(cells)], ignore_index=True)
    table.to_parquet(folder / "results.parquet")
    write_json(folder / "warmups.json", warmups)
    return {"process_peak_memory_mb": round(peak, 1), "teacher_parameters": teacher.n_parameters}
