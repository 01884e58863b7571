"""A run folder made here, for tests of reports.

The clips are real procedural ones, the numbers are drawn from a seeded generator and named "test data" in the run's own
description, so that no figure made of them can be taken for a result.
"""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file

from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.metrics.table import COLUMNS
from flgbench.registry import resolve

HOSTILE = (
    "[1] <script>alert(1)</script> $x_{1}$ & 50% #1 | ~^\\input{/etc/passwd} </style> {{ 7*7 }} "
    '"q" <img src=x onerror=alert(1)>'
)

CELLS: list[dict[str, Any]] = [
    {"cell": "real", "kind": "control", "label": "Real clips"},
    {"cell": "vae_round_trip", "kind": "control", "label": "VAE round trip"},
    {
        "cell": "euler-50",
        "kind": "reference",
        "label": "Euler 50",
        "nfe": 100,
        "steps": 50,
        "w": 5.0,
        "q": 0.93,
        "s": 0.52,
    },
    {
        "cell": "fastlightgen",
        "kind": "method",
        "label": "FastLightGen",
        "nfe": 4,
        "steps": 4,
        "kept": 0.7,
        "q": 0.9,
        "s": 0.0163,
    },
    {"cell": "dmd2", "kind": "method", "label": "DMD2", "nfe": 4, "steps": 4, "q": 0.88, "s": 0.0222},
    {
        "cell": "lcm",
        "kind": "method",
        "label": "LCM",
        "nfe": 4,
        "steps": 4,
        "status": "failed",
        "reason": "collapsed: static",
    },
    {"cell": "euler-4", "kind": "baseline", "label": "Euler 4", "nfe": 8, "steps": 4, "w": 5.0, "q": 0.45, "s": 0.0428},
    {
        "cell": "euler-4-no-cfg",
        "kind": "baseline",
        "label": "Euler 4, no CFG",
        "nfe": 4,
        "steps": 4,
        "q": 0.3,
        "s": 0.0221,
    },
    {"cell": "frozen_image", "kind": "control", "label": "Frozen image"},
]
SHARES = ("presence", "colour", "shape", "direction", "second_present")


def make_cell(c: dict[str, Any]) -> dict[str, Any]:
    network = "nfe" in c
    kept = c.get("kept", 1.0) if network else None
    trained = c["kind"] == "method"
    return {
        "cell": c["cell"],
        "method": c["cell"].split("-")[0],
        "label": c["label"],
        "kind": c["kind"],
        "family": {"fastlightgen": "joint", "dmd2": "step", "lcm": "step"}.get(c["cell"], "none"),
        "changes": f"test data for {c['label']}",
        "nfe": c.get("nfe"),
        "num_inference_steps": c.get("steps"),
        "guidance_scale": c.get("w"),
        "sampler": ("few_step" if trained else "euler") if network else None,
        "kept_parameters": kept and kept + 0.01 * (kept < 1),
        "kept_blocks": kept,
        "parameters": int(3_000_000 * kept) if kept else None,
        "training_passes": 12000 if trained else 0 if network else None,
        "training_seconds": 48.0 if trained else None,
        "status": c.get("status", "done"),
        "reason": c.get("reason"),
        "settings": {"alpha": 1.0, "match": {"beta1": [2.5, 4.5]}}
        if c["cell"] == "fastlightgen"
        else {"lr": 1e-4}
        if trained
        else {},
        "inferred": [{"setting": "match.ratio", "value": 5, "note": "fake-score updates per generator update"}]
        if trained
        else [],
        "stages": [{"name": name, "key": f"{name}-{c['cell']}-v1-0123456789ab"} for name in ("recover", "match")]
        if trained
        else [],
    }


def make_table(conditions: int, samples: int, pairs: int) -> pd.DataFrame:
    """Numbers of the kind a run gives, drawn from a seeded generator: test data, not measured."""
    g = np.random.default_rng(7)
    hardness = g.normal(0, 0.6, conditions)
    rows: list[tuple[Any, ...]] = []

    def add(
        cell: str, condition: int, sample: int, metric: str, value: float, unit: str, up: bool | None, why: str = ""
    ) -> None:
        status = "missing" if why else "ok"
        rows.append(("run", cell, cell, "wanx", "tiny", 0, condition, sample, metric, value, unit, up, status, why or None))

    for c in CELLS:
        cell, q = (
            c["cell"],
            c.get("q", {"real": 0.999, "vae_round_trip": 0.995, "frozen_image": 0.02}.get(c["cell"], 0)),
        )
        if c.get("status") == "failed":
            continue
        for condition in range(conditions):
            for sample in range(samples):
                chance = 1 / (1 + np.exp(-(np.log(q / (1 - q)) + hardness[condition])))
                each = (g.random(len(SHARES)) < chance ** (1 / len(SHARES))).astype(float)
                for name, value in zip(SHARES, each, strict=True):
                    add(cell, condition, sample, name, value, "share", True)
                add(cell, condition, sample, "joint", each.min(), "share", True)
                lost = bool(each[0] == 0)
                add(
                    cell,
                    condition,
                    sample,
                    "turn_error",
                    np.nan if lost else g.gamma(2, 1.2 - q),
                    "px",
                    False,
                    "object lost" * lost,
                )
                add(
                    cell,
                    condition,
                    sample,
                    "motion_ratio",
                    0.0 if cell == "frozen_image" else g.normal(0.5 + q / 2, 0.08),
                    "ratio",
                    None,
                )
                add(
                    cell,
                    condition,
                    sample,
                    "first_frame_psnr",
                    58.9 if cell in ("real", "frozen_image") else g.normal(33, 1.5),
                    "dB",
                    True,
                )
                add(cell, condition, sample, "sharpness_ratio", g.normal(0.6 + 0.4 * q, 0.05), "ratio", None)
                add(cell, condition, sample, "flicker", g.gamma(4, 0.3 * (1.1 - q)), "grey levels", False)
        for name, value in (
            ("hidden_tv_turn", 0.4 - 0.35 * q),
            ("mmd", 0.03 * (1 - q) ** 2 - 1e-4),
            ("mmd_p", 0.5 if q > 0.9 else 0.001),
        ):
            add(cell, -1, 0, name, value, "", False if name != "mmd_p" else None)
        if "s" in c:
            for pair in range(pairs):
                drift = np.exp(g.normal(0, 0.05))
                denoise, text, decode = (drift * x * np.exp(g.normal(0, 0.01)) for x in (c["s"], 0.0021, 0.031))
                timed = {
                    "denoise_s": denoise,
                    "text_s": text,
                    "decode_s": decode,
                    "end_to_end_s": denoise + text + decode,
                }
                if c["kind"] == "reference":
                    timed["denoise_batched_cfg_s"] = 0.62 * denoise
                for name, value in timed.items():
                    add(cell, pair, 0, name, value, "s", False)
            add(cell, -1, 0, "peak_memory_mb", 812.0, "MB", False)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({"higher_is_better": "boolean"})


def make_clips(count: int) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Real procedural clips, and clips with other hidden factors, blurred or frozen, in the place of generated ones."""
    factors = shapes.draw_factors("test", range(count))
    truth = shapes.render(factors)
    captions = captions_of(factors)
    conditions = [
        {
            "condition": i,
            "caption": captions[i],
            "shape": shapes.SHAPES[factors.shape[i]],
            "colour": shapes.COLOURS[factors.colour[i]],
            "background": shapes.BACKGROUNDS[factors.background[i]],
            "size": shapes.SIZES[factors.size[i]],
        }
        for i in range(count)
    ]
    other = shapes.render(type(factors)(**{**vars(factors), "turn": (factors.turn + 1) % 4, "side": (factors.side + 1) % 4}))
    later = shapes.render(type(factors)(**{**vars(factors), "turn": (factors.turn + 2) % 4}))
    noise = torch.randint(0, 9, truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    pooled = torch.nn.functional.avg_pool2d(other.float().flatten(0, 1).permute(0, 3, 1, 2), 5, 1, 2)
    blurred = pooled.permute(0, 2, 3, 1).reshape(other.shape).to(torch.uint8)
    videos = {
        "real": truth,
        "vae_round_trip": truth - torch.minimum(truth, noise // 2),
        "euler-50": other - torch.minimum(other, noise),
        "fastlightgen": later - torch.minimum(later, noise),
        "dmd2": truth - torch.minimum(truth, noise),
        "euler-4": blurred,
        "euler-4-no-cfg": (blurred.float() * 0.5 + truth.float() * 0.5).to(torch.uint8),
        "frozen_image": truth[:, :1].expand_as(truth),
    }
    return conditions, {name: video.contiguous().numpy() for name, video in videos.items()}


def make_run(folder: Path, conditions: int = 24, samples: int = 2, pairs: int = 20, clips: int = 2) -> Path:
    """A whole run folder of test data."""
    (folder / "curves").mkdir(parents=True)
    (folder / "gallery").mkdir()
    cells = [make_cell(c) for c in CELLS]
    (folder / "cells.json").write_text(json.dumps(cells))
    run = {
        "name": "test data, not measured",
        "command": "flgbench run --methods all --model wanx",
        "settings": {"model": "wanx", "scale": "tiny", "seed": 0, "quality": {"conditions": conditions}},
        "environment": {"python": "3.11", "torch": "2", "cpu": "two cores", "threads": "2"},
        "started": "2030-01-01T10:00:00+00:00",
        "finished": "2030-01-01T10:07:12+00:00",
        "seconds": 432.0,
    }
    (folder / "run.json").write_text(json.dumps(run))
    steps = [
        {
            "key": f"{kind}-{c['cell']}-v1-0123456789ab",
            "kind": kind,
            "name": c["cell"],
            "cells": [c["cell"]],
            "status": c["status"],
            "reason": c["reason"],
            "seconds": 12.5,
        }
        for kind in ("sample", "quality")
        for c in cells
    ]
    (folder / "steps.json").write_text(json.dumps(steps))
    make_table(conditions, samples, pairs).to_parquet(folder / "results.parquet")
    error = [0.9, 0.21, 0.08, 0.06, 0.05, 0.055, 0.06, 0.09, 0.14, 0.4]
    importance = {
        "blocks": list(range(10)),
        "x0_error": error,
        "elbo": [e * 1.5 + 0.01 * (i % 3) for i, e in enumerate(error)],
        "redundant": [4, 5, 6],
        "dense_x0_error": 0.045,
    }
    (folder / "importance.json").write_text(json.dumps(importance))
    g = np.random.default_rng(3)
    for name, terms in (
        ("fastlightgen.recover", ("dense", "pruned")),
        ("fastlightgen.match", ("dm", "fake")),
        ("dmd2.match", ("dm", "fake")),
    ):
        lines = [
            {"iteration": i, "passes": 12 * i, "seconds": 0.1 * i}
            | {t: float(np.exp(-i / 90 - k + g.normal(0, 0.2))) for k, t in enumerate(terms)}
            for i in range(200)
        ]
        (folder / "curves" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    told, videos = make_clips(clips)
    (folder / "gallery" / "conditions.json").write_text(json.dumps(told))
    for cell, video in videos.items():
        save_file({"video": video}, str(folder / "gallery" / f"{cell}.safetensors"))
    return folder


def rewritten(source: Path, target: Path, name: str, change: Any) -> Path:
    """A copy of a run folder with one JSON file changed by `change(content)`."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("report"))
    content = json.loads((target / name).read_text())
    change(content)
    (target / name).write_text(json.dumps(content))
    return target


def read_csv(index: Path) -> pd.DataFrame:
    return pd.read_csv(index.parent / "tables" / "main.csv", dtype=str, keep_default_na=False).set_index("cell")


def only(monkeypatch: Any, *names: str) -> None:
    """Let a report be made of these parts alone: what is tested is how they come together, not the drawing."""
    monkeypatch.setattr("reports.builders", lambda: {name: resolve(f"reports.{name}:build") for name in names})


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
