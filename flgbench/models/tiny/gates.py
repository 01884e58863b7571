"""The gates of a tiny teacher: is it good, and does the ground separate? Measured on held-out conditions.

The result is committed beside the weights as `gates.json`; `flgbench pretrain --gates` writes it again.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flgbench import environment
from flgbench.contracts import Family, FamilyPreset
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.metrics import sets
from flgbench.metrics.stats import mean_over_conditions
from flgbench.metrics.table import ALL_METRICS
from flgbench.metrics.truth import measure
from flgbench.models.base import VideoModel
from flgbench.sampling import CLIPS_AT_ONCE, DECODED_AT_ONCE, SamplerSettings, generate
from flgbench.shipped import HASHES
from flgbench.store import sha256, write_json

# name -> (metric, statistic, comparison, limit): what a teacher must reach as it is used, with its own guidance
TEACHER_GATES = {
    "main object in every frame": ("presence", "mean", ">=", 0.98),
    "colour": ("colour", "mean", ">=", 0.98),
    "shape": ("shape", "mean", ">=", 0.95),
    "first-half direction": ("direction", "mean", ">=", 0.95),
    "centroid error at the turn": ("turn_error", "median", "<=", 1.5),
    "motion ratio, low": ("motion_ratio", "mean", ">=", 0.9),
    "motion ratio, high": ("motion_ratio", "mean", "<=", 1.1),
    "second object": ("second_present", "mean", ">=", 0.9),
    "hidden turn": ("hidden_tv_turn", "value", "<=", 0.15),
    "hidden side": ("hidden_tv_side", "value", "<=", 0.15),
    "hidden entry": ("hidden_tv_entry", "value", "<=", 0.15),
}
SOUND_GATES = {"size follows the sound": ("audio_correlation", "mean", ">=", 0.8)}  # where the family's clips have one
CFG, EMBEDDED = "euler 50 x CFG", "euler 50, embedded guidance"
PRUNED, ROUND_TRIP = "3 middle blocks deleted", "vae round trip"


def teacher_row(preset: FamilyPreset) -> str:
    """The row that the gates judge: the teacher with the guidance it is used with."""
    return EMBEDDED if preset.guidance_is_embedded else CFG


def middle(model: VideoModel) -> range:
    """Positions of the three blocks in the middle."""
    first = len(model.blocks) // 2 - 1
    return range(first, first + 3)


def row_samplers(preset: FamilyPreset) -> dict[str, SamplerSettings]:
    """The teacher as it is used, with fewer and fewer steps, and with the few-step sampler that it was not trained for.

    Where guidance is embedded, CFG of two passes that are told 1 stands beside it: the two should be as good. Rows without
    guidance, which students are compared with, tell the network 1.
    """
    euler = {f"euler {n}": SamplerSettings(num_inference_steps=n, shift=preset.shift) for n in (50, 8, 4, 2, 1)}
    renoise = SamplerSettings(kind="renoise", num_inference_steps=4, shift=preset.shift)
    guided = preset.teacher_sampler()
    twice = {CFG: replace(preset, guidance_is_embedded=False).teacher_sampler()} if preset.guidance_is_embedded else {}
    return {teacher_row(preset): guided, **twice, PRUNED: guided, **euler, "renoise 4": renoise}


def measure_gates(family: Family, conditions: int, seeds: int, folder: Path) -> dict[str, Any]:
    """Measure everything on `conditions` held-out clips, each sampled with `seeds` noises, and write `folder/gates.json`.

    `folder` holds the teacher of any tiny `family`, which its `recipe` reads. Intervals are clustered by condition: what is
    hidden differs from seed to seed, so more seeds make them narrower.
    """
    began = time.time()
    model, preset = _load(family, folder), family.preset("tiny")
    names = [*row_samplers(preset), ROUND_TRIP, "real"]  # the long ones first
    measure_one = partial(_row, family=family, conditions=conditions, seeds=seeds, folder=folder)
    # A process a core with one thread each: small networks leave half of two cores idle otherwise.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(environment.cores(), context, torch.set_num_threads, (1,)) as pool:
        rows = dict(zip(names, pool.map(measure_one, names), strict=True))
    decode = _decode_seconds(model)
    due = TEACHER_GATES | (SOUND_GATES if family.clips.sounding else {})
    gates = {name: _judge(rows[teacher_row(preset)], *gate) for name, gate in due.items()}
    psnr = rows[ROUND_TRIP]["psnr"]
    gates["VAE round trip PSNR"] = {"value": psnr, "limit": ">= 30", "passed": psnr >= 30}
    share = decode / _denoise_seconds(model, preset.teacher_sampler())
    gates["decode / denoise"] = {"value": share, "limit": "<= 0.1", "passed": share <= 0.1}
    result = {
        "command": f"flgbench pretrain --model {family.name} --gates --conditions {conditions} --seeds {seeds}",
        "weights": sha256(folder / HASHES),
        "conditions": conditions,
        "seeds": seeds,
        "split": "validation",
        "passed": all(g["passed"] for g in gates.values()),
        "gates": gates,
        "rows": {name: rows[name] for name in ("real", ROUND_TRIP, *row_samplers(preset))},
        "seconds": round(time.time() - began, 1),
        "environment": environment.facts(),
    }
    write_json(folder / "gates.json", result)
    return result


def _load(family: Family, folder: Path) -> VideoModel:
    return import_module(family.recipe).load(folder)


def _row(name: str, family: Family, conditions: int, seeds: int, folder: Path) -> dict[str, Any]:
    """What the gates' table says of one row."""
    factors = family.clips.draw("validation", np.arange(conditions))
    video = shapes.render(factors)
    if name == "real":
        return _summary(measure(video, factors), np.arange(conditions))
    model = _load(family, folder)
    if name == ROUND_TRIP:
        through = torch.cat([model.decode(model.encode_video(v)) for v in video.split(16)])
        return _summary(measure(through, factors), np.arange(conditions)) | {"psnr": _psnr(through, video)}
    condition = model.with_inputs(model.condition(video[:, 0], captions_of(factors)), family.clips.inputs(factors))
    sampler = row_samplers(family.preset("tiny"))[name]
    return _sampled(model.without_blocks(middle(model)) if name == PRUNED else model, condition, sampler, factors, seeds)


def _judge(row: dict[str, Any], metric: str, statistic: str, comparison: str, limit: float) -> dict[str, Any]:
    value = row[metric] if statistic == "value" else row[metric].get(statistic)
    if value is None:  # not observable in any clip
        return {"value": None, "limit": f"{comparison} {limit}", "passed": False}
    passed = value >= limit if comparison == ">=" else value <= limit
    return {"value": round(value, 4), "limit": f"{comparison} {limit}", "passed": bool(passed)}


def _summary(measured: dict[str, np.ndarray], conditions: np.ndarray) -> dict[str, Any]:
    """Statistics of every metric; None where no clip showed it."""
    row: dict[str, Any] = {}
    for name, values in measured.items():
        if name.startswith("observed_"):
            continue
        seen = np.isfinite(values)
        if not seen.any():
            row[name] = {"mean": None, "n": 0}
            continue
        found = mean_over_conditions(values[seen], conditions[seen], draws=2000, share=ALL_METRICS[name].unit == "share")
        low, high = round(found.low, 4), round(found.high, 4)
        median = float(np.median(values[seen]))
        row[name] = {"mean": found.value, "low": low, "high": high, "median": median, "n": int(seen.sum())}
    for hidden in ("turn", "side", "entry"):
        apart = sets.total_variation(measured[f"observed_{hidden}"], shapes.LAWS[hidden])
        row[f"hidden_tv_{hidden}"] = apart if np.isfinite(apart) else None
    return row


def _sampled(model: VideoModel, condition, sampler: SamplerSettings, factors, seeds: int) -> dict[str, Any]:
    ids = [(c, s) for c in range(len(factors)) for s in range(seeds)]
    videos = []
    at_once = CLIPS_AT_ONCE["cpu"]
    for start in range(0, len(ids), at_once):
        chosen = ids[start : start + at_once]
        latents, _ = generate(model, condition.select(torch.tensor([c for c, _ in chosen])), chosen, sampler)
        videos += [model.decode(part) for part in latents.split(DECODED_AT_ONCE)]
    conditions = np.array([c for c, _ in ids])
    return _summary(measure(torch.cat(videos), factors.select(conditions)), conditions)


def _psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over clips of each clip's PSNR in dB."""
    error = (a.float() - b.float()).pow(2).mean(dim=(1, 2, 3, 4)).clamp_min(1e-3)
    return float((10 * torch.log10(255**2 / error)).mean())


def _median_seconds(action, runs: int) -> float:
    action()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def _decode_seconds(model: VideoModel) -> float:
    latents = torch.zeros(1, *model.latent_shape)
    return _median_seconds(lambda: model.decode(latents), 5)


def _denoise_seconds(model: VideoModel, sampler: SamplerSettings) -> float:
    factors = shapes.draw_factors("validation", [0])
    one = model.condition(shapes.render(factors)[:, 0], captions_of(factors))
    return _median_seconds(lambda: generate(model, one, [(0, 0)], sampler), 3)
