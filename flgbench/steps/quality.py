"""Measure the clips of one cell against the truth; a tidy table without the run's and cell's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from flgbench.cells import Step
from flgbench.data import shapes
from flgbench.metrics import learned, sets, suite
from flgbench.metrics.judges import classifier
from flgbench.metrics.judges.lpips_first_frame import why_not
from flgbench.metrics.table import ALL_METRICS
from flgbench.metrics.truth import measure
from flgbench.steps.loading import TEST, Evaluated, clips_of, evaluated, evaluation_factors
from flgbench.store import Store

HIDDEN = ("turn", "side", "entry")
SUPPORT_CLIPS = 128  # below, nearest neighbours are too far for precision, recall and coverage to mean anything
REFERENCE_CLIPS = 512  # fresh real clips that fix the bandwidth and stand for the data in the set distance


def run(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    source = store.path(step.inputs["sample"])
    video = load_file(source / "videos.safetensors")["video"]
    ids = json.loads((source / "identities.json").read_text())
    conditions, samples = (np.array(column) for column in zip(*ids, strict=True))
    if "suite" in step.settings:
        told = evaluated(step, store, int(conditions.max()) + 1)
        of_suite(video, told, conditions, samples).to_parquet(folder / "results.parquet")
        return {"clips": len(video)}
    split = step.settings.get("split", TEST)
    factors = evaluation_factors(int(conditions.max()) + 1, split, clips_of(step)).select(conditions)
    measured = measure(video, factors)
    judged, features = learned.judged(video, factors)
    tables = [
        pd.DataFrame({"metric": name, "condition": conditions, "sample": samples, "value": values})
        for name, values in (measured | judged).items()
    ]
    once = np.flatnonzero(samples == 0)
    whole, bandwidth = of_the_set(video[once], features[once])
    whole |= {f"hidden_tv_{k}": sets.total_variation(measured[f"observed_{k}"], shapes.LAWS[k]) for k in HIDDEN}
    tables.append(
        pd.DataFrame({"metric": list(whole), "condition": -1, "sample": 0, "value": [float(v) for v in whole.values()]})
    )
    repeated, diversity = sets.seed_diversity(measured["observed_turn"], conditions, shapes.LAWS["turn"])
    if not len(repeated):
        repeated, diversity = np.array([-1]), np.array([np.nan])
    tables.append(pd.DataFrame({"metric": "turn_diversity", "condition": repeated, "sample": 0, "value": diversity}))
    completed(tables, not_run(len(once))).to_parquet(folder / "results.parquet")
    return {"clips": len(video), "bandwidth": bandwidth}


def completed(tables: list[pd.DataFrame], reasons: Mapping[str, str]) -> pd.DataFrame:
    """One table with units and status; a metric's missing values have the reason of `reasons`, if there is one."""
    table = pd.concat(tables, ignore_index=True)
    table["unit"] = [ALL_METRICS[m].unit for m in table["metric"]]
    table["higher_is_better"] = [ALL_METRICS[m].higher_is_better for m in table["metric"]]
    missing = table["value"].isna()
    table["status"] = np.where(missing, "missing", "ok")
    table["reason"] = np.where(missing, "not observable in this clip", "")
    for name, reason in reasons.items():
        table.loc[missing & (table["metric"] == name), "reason"] = reason
    return table


def of_suite(video: torch.Tensor, told: Evaluated, conditions: np.ndarray, samples: np.ndarray) -> pd.DataFrame:
    """What needs no truth, and for every other measure one row that says so."""
    found = suite.measure(video, told.first_frames[conditions], [told.captions[c] for c in conditions])
    reasons = suite.not_run(list(found))
    tables = [
        pd.DataFrame({"metric": name, "condition": conditions, "sample": samples, "value": values})
        for name, values in found.items()
    ]
    rest = pd.DataFrame({"metric": list(reasons), "condition": -1, "sample": 0, "value": np.nan})
    return completed([*tables, rest], reasons)


def of_the_set(video: torch.Tensor, features: np.ndarray) -> tuple[dict[str, float], float]:
    """Measures of clips of different conditions (N, 17, 64, 64, 3) and the classifier's features of them (N, 16), and the
    bandwidth of the kernels. NaN where N does not suit a measure: `not_run` says why."""
    real, bandwidth = real_reference()
    mine = sets.clip_features(video)
    whole = learned.distances(features)
    whole["mmd"], whole["mmd_p"] = sets.mmd_permutation(mine, real, bandwidth)
    equal = real[: len(mine)]
    whole["vendi"] = sets.vendi(mine, bandwidth) / sets.vendi(equal, bandwidth) if len(equal) == len(mine) else np.nan
    covered = sets.support(mine, equal) if SUPPORT_CLIPS <= len(mine) == len(equal) else {}
    return whole | {name: covered.get(name, np.nan) for name in ("precision", "recall", "coverage")}, bandwidth


@lru_cache(maxsize=1)
def real_reference() -> tuple[np.ndarray, float]:
    """Features (512, D) of the fresh real clips, and the kernels' bandwidth."""
    real = sets.clip_features(shapes.render(shapes.draw_factors("validation", np.arange(REFERENCE_CLIPS))))
    return real, sets.median_bandwidth(real)


def not_run(conditions: int) -> dict[str, str]:
    """Why a measure has no value where it has none, with so many conditions."""
    support = f"needs {SUPPORT_CLIPS} to {REFERENCE_CLIPS} conditions, has {conditions}"
    frechet = f"needs {learned.CLIPS_A_FEATURE} conditions for each of {classifier.FEATURES} features, has {conditions}"
    return {
        "turn_diversity": "no condition was seen with two or more seeds",
        **dict.fromkeys(("precision", "recall", "coverage"), support),
        "vendi": f"needs at most {REFERENCE_CLIPS} conditions, has {conditions}",
        "frechet": frechet,
        "kernel": f"needs {learned.KERNEL_CLIPS} conditions, has {conditions}",
        "first_frame_lpips": why_not(),
    }
