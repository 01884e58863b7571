"""Measure the clips of one cell against the truth; a tidy table without the run's and cell's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from flgbench.data import shapes
from flgbench.metrics import sets
from flgbench.metrics.table import METRICS, SET_METRICS
from flgbench.metrics.truth import measure, select
from flgbench.plan import Step
from flgbench.steps.loading import test_factors
from flgbench.store import Store

HIDDEN = {"turn": 4, "side": 4, "entry": 3}
SUPPORT_CLIPS = 128  # below, nearest neighbours are too far for precision, recall and coverage to mean anything
REFERENCE_CLIPS = 512  # fresh real clips that fix the bandwidth and stand for the data in the set distance


def run(step: Step, store: Store, folder: Path) -> dict[str, Any]:
    source = store.path(step.inputs["sample"])
    video = load_file(source / "videos.safetensors")["video"]
    ids = json.loads((source / "identities.json").read_text())
    conditions, samples = (np.array(column) for column in zip(*ids, strict=True))
    factors = select(test_factors(int(conditions.max()) + 1), conditions)
    measured = measure(video, factors)
    tables = [
        pd.DataFrame({"metric": name, "condition": conditions, "sample": samples, "value": values})
        for name, values in measured.items()
    ]
    whole = {f"hidden_tv_{k}": sets.total_variation(measured[f"observed_{k}"], shapes.LAWS[k]) for k in HIDDEN}
    once = samples == 0
    reference = shapes.render(shapes.draw_factors("validation", np.arange(REFERENCE_CLIPS)))
    real = sets.clip_features(reference)
    bandwidth = sets.median_bandwidth(real)
    mine = sets.clip_features(video[np.flatnonzero(once)])
    whole["mmd"], whole["mmd_p"] = sets.mmd_permutation(mine, real, bandwidth)
    equal = real[: len(mine)]
    whole["vendi"] = sets.vendi(mine, bandwidth) / sets.vendi(equal, bandwidth) if len(equal) == len(mine) else np.nan
    covered = sets.support(mine, equal) if SUPPORT_CLIPS <= len(mine) == len(equal) else {}
    whole |= {name: covered.get(name, np.nan) for name in ("precision", "recall", "coverage")}
    tables.append(
        pd.DataFrame({"metric": list(whole), "condition": -1, "sample": 0, "value": [float(v) for v in whole.values()]})
    )
    repeated, diversity = sets.seed_diversity(measured["observed_turn"], conditions, shapes.LAWS["turn"])
    if not len(repeated):
        repeated, diversity = np.array([-1]), np.array([np.nan])
    tables.append(pd.DataFrame({"metric": "turn_diversity", "condition": repeated, "sample": 0, "value": diversity}))
    table = pd.concat(tables, ignore_index=True)
    known = METRICS | SET_METRICS
    table["unit"] = [known[m].unit for m in table["metric"]]
    table["higher_is_better"] = [known[m].higher_is_better for m in table["metric"]]
    missing = table["value"].isna()
    table["status"] = np.where(missing, "missing", "ok")
    table["reason"] = np.where(missing, "not observable in this clip", "")
    for names, reason in (
        (["turn_diversity"], "no condition was seen with two or more seeds"),
        (["precision", "recall", "coverage"], f"needs {SUPPORT_CLIPS} to {REFERENCE_CLIPS} conditions, has {len(mine)}"),
        (["vendi"], f"needs at most {REFERENCE_CLIPS} conditions, has {len(mine)}"),
    ):
        table.loc[missing & table["metric"].isin(names), "reason"] = reason
    table.to_parquet(folder / "results.parquet")
    return {"clips": len(video), "bandwidth": bandwidth}
