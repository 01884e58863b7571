"""Reports: numbers against direct computation, hostile text, missing values, LaTeX, a page without network.

The run folder is made here: the clips are real procedural ones, the numbers are drawn from a seeded generator and named
"test data" in the run's own description, so that no figure made of them can be taken for a result.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.metrics.stats import mcnemar
from reports import build_all, comparisons, gallery, main_table, paper_numbers, pareto, trainings, waterfall
from reports.aggregates import median_interval, speedups, verdict
from reports.data import COLUMNS, RunData, RunFolderError, load_run

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def index(folder: Path) -> Path:
    return build_all(folder)


def rewritten(source: Path, target: Path, name: str, change: Any) -> Path:
    """A copy of a run folder with one JSON file changed by `change(content)`."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("report"))
    content = json.loads((target / name).read_text())
    change(content)
    (target / name).write_text(json.dumps(content))
    return target


def read_csv(index: Path) -> pd.DataFrame:
    return pd.read_csv(index.parent / "tables" / "main.csv", dtype=str, keep_default_na=False).set_index("cell")


def test_table_equals_direct_computation(folder: Path, index: Path) -> None:
    table, results = read_csv(index), pd.read_parquet(folder / "results.parquet")
    for cell in ("euler-50", "fastlightgen", "frozen_image", "real"):
        for metric in ("joint", "turn_error", "sharpness_ratio"):
            rows = results[(results.cell == cell) & (results.metric == metric) & (results.status == "ok")]
            by_condition = rows.groupby("condition")["value"].mean()
            assert float(table.loc[cell, metric]) == pytest.approx(by_condition.mean())
            low, high = float(table.loc[cell, f"{metric}_low"]), float(table.loc[cell, f"{metric}_high"])
            assert low <= by_condition.mean() <= high
            assert int(table.loc[cell, f"{metric}_n"]) == len(rows)
    seconds = results[results.metric == "denoise_s"].pivot(index="condition", columns="cell", values="value")
    ratio = np.exp(np.log(seconds["euler-50"] / seconds["fastlightgen"]).mean())
    assert float(table.loc["fastlightgen", "denoise"]) == pytest.approx(ratio)
    assert float(table.loc["fastlightgen", "denoise_s"]) == pytest.approx(seconds["fastlightgen"].median())
    assert float(table.loc["fastlightgen", "nominal"]) == pytest.approx(50 * 2 / (4 * 0.7))
    assert float(table.loc["euler-4", "nominal"]) == pytest.approx(12.5)


def test_intervals_cover_a_known_median() -> None:
    g = np.random.default_rng(5)
    hits = [low <= 1 <= high for _, low, high in (median_interval(np.exp(g.normal(0, 1, 20))) for _ in range(2000))]
    assert 0.94 < np.mean(hits) < 0.985  # order statistics 6 and 15 of 20: 95.9 %
    assert np.isnan(median_interval(np.arange(5.0))[1])


def test_missing_is_never_zero(index: Path) -> None:
    table = read_csv(index)
    for column in ("joint", "denoise_s", "mmd", "end_to_end"):
        assert table.loc["lcm", column] == ""
        assert "collapsed: static" in table.loc["lcm", f"{column}_note"]
    assert table.loc["real", "nominal"] == ""
    markdown = (index.parent / "tables" / "main.md").read_text()
    lcm = [line for line in markdown.splitlines() if line.startswith("| LCM |")]
    assert len(lcm) == 6 and all("—<sup>" in line for line in lcm)
    assert "collapsed: static" in markdown
    lost = [r for r in table["turn_error_note"] if "object lost" in r]
    assert lost and all(re.match(r"\d+ of \d+ missing", r) for r in lost)


def test_ranks_leave_out_controls_and_failed_cells(folder: Path) -> None:
    for table in main_table.tables(load_run(folder)):
        for row in table.rows:
            for column in table.columns:
                if row.kind == "control" or row.key == "lcm":
                    assert row.entries[column.key].rank == 0
        best = [(c.key, row.key) for c in table.columns for row in table.rows if row.entries[c.key].rank == 1]
        if table.name == "speed":
            assert ("denoise", "fastlightgen") in best and ("denoise_s", "fastlightgen") in best


def test_verdicts(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", conditions=8, clips=1)
    table = pd.read_parquet(folder / "results.parquet")
    joint = table.metric == "joint"
    table.loc[joint & (table.cell == "euler-4"), "value"] = 0.0

    def agreeing(conditions: int) -> RunData:
        """fastlightgen and the reference agree sample by sample on so many conditions."""
        right = (np.arange(conditions) % 3 > 0).astype(float)
        parts = [table[~(joint & table.cell.isin(["euler-50", "fastlightgen"]))]]
        for cell in ("euler-50", "fastlightgen"):
            row = table[joint & (table.cell == cell)].iloc[[0] * conditions]
            parts.append(row.assign(condition=range(conditions), sample=0, value=right))
        pd.concat(parts).to_parquet(folder / "results.parquet")
        return load_run(folder)

    run = agreeing(60)  # too few to exclude a loss of 1 %
    assert verdict(run, run.cell("fastlightgen")).answer == "indistinguishable"
    run = agreeing(600)
    same = verdict(run, run.cell("fastlightgen"))
    assert same.difference is not None and same.difference.value == 0 and same.answer == "wins"
    assert verdict(run, run.cell("euler-4")).answer == "below"
    assert verdict(run, run.cell("lcm")).answer == "failed"
    assert verdict(run, run.cell("real")).answer == "control"
    # As good but not faster is no win.
    table = pd.read_parquet(folder / "results.parquet")
    table.loc[(table.cell == "fastlightgen") & (table.metric == "denoise_s"), "value"] *= 100
    table.to_parquet(folder / "results.parquet")
    run = load_run(folder)
    assert verdict(run, run.cell("fastlightgen")).answer == "indistinguishable"


def test_a_collapsed_student_is_below_however_right_its_clips_are(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", conditions=8, clips=1)
    table = pd.read_parquet(folder / "results.parquet")
    joint = table[(table.metric == "joint") & (table.cell == "euler-50")]
    parts = [table[~((table.metric == "joint") & (table.cell == "fastlightgen"))], joint.assign(cell="fastlightgen")]
    varied = table[table.cell == "euler-50"].iloc[[0] * 4].assign(metric="turn_diversity", condition=range(4), sample=0)
    parts.append(varied.assign(value=[1.0, 0.9, 1.1, 1.05]))
    parts.append(varied.assign(cell="fastlightgen", value=0.0))
    pd.concat(parts).to_parquet(folder / "results.parquet")
    run = load_run(folder)
    found = verdict(run, run.cell("fastlightgen"))
    assert found.answer == "below" and "less diverse: turns of one condition differ 0.00" in found.why
    entry = {row.key: row for row in main_table.accuracy(run).rows}["fastlightgen"].entries["verdict"]
    assert entry.text == "below" and "less diverse" in entry.note


def test_differences_are_paired_and_adjusted(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", conditions=40, clips=1)
    table = pd.read_parquet(folder / "results.parquet")
    joint = table.metric == "joint"
    table.loc[joint & (table.cell == "euler-50"), "value"] = 1.0
    table.loc[joint & (table.cell == "euler-4"), "value"] = 0.0
    same = table[joint & (table.cell == "euler-50")].assign(cell="fastlightgen")
    pd.concat([table[~(joint & (table.cell == "fastlightgen"))], same]).to_parquet(folder / "results.parquet")
    run = load_run(folder)
    assert [c.cell for c in comparisons.opponents(run)] == ["euler-50", "euler-4", "euler-4-no-cfg"]
    rows = {row.key: row.entries for row in comparisons.table(run).rows}
    assert rows["euler-4"]["euler-50"].value == -1 and rows["euler-4"]["euler-50_p"].text == "< 0.001"
    assert rows["fastlightgen"]["euler-50"].value == 0 and rows["fastlightgen"]["euler-50_p"].value == 1
    assert rows["fastlightgen"]["euler-4"].text == "+100.0"
    assert rows["euler-4"]["euler-4"].note == "itself" and not rows["euler-4"]["euler-4"].text
    assert "collapsed: static" in rows["lcm"]["euler-50"].note and rows["lcm"]["euler-50_p"].value is None
    once = comparisons.paired(run, "dmd2", "euler-50", "joint").query("sample == 0")
    raw = mcnemar(once["value"].to_numpy(), once["reference"].to_numpy())
    assert rows["dmd2"]["euler-50_p"].value >= raw  # Holm never makes a p-value smaller


def test_several_trainings(tmp_path: Path) -> None:
    source = make_run(tmp_path / "run", conditions=30, samples=1, clips=1)

    def change(cells: list[dict[str, Any]]) -> None:
        dmd2 = next(c for c in cells if c["cell"] == "dmd2")
        cells.append(dmd2 | {"cell": "dmd2-seed1", "label": "DMD2, seed 1", "repeat": 1})
        failed = {"cell": "dmd2-seed2", "label": "DMD2, seed 2", "repeat": 2, "status": "failed", "reason": "NaN"}
        cells.append(dmd2 | failed)

    folder = rewritten(source, tmp_path / "several", "cells.json", change)
    table = pd.read_parquet(folder / "results.parquet")
    quality = table[(table.cell == "dmd2") & ~table.metric.str.endswith("_s")].assign(cell="dmd2-seed1")
    quality.loc[quality.metric == "joint", "value"] = 1.0
    pd.concat([table, quality]).to_parquet(folder / "results.parquet")
    run = load_run(folder)
    (row,) = trainings.table(run).rows
    first = table[(table.cell == "dmd2") & (table.metric == "joint")].value.mean()
    assert row.key == "dmd2" and row.entries["n"].text == "2" and "NaN" in row.entries["n"].note
    assert row.entries["mean"].value == pytest.approx((first + 1) / 2)
    assert row.entries["spread"].value == pytest.approx((1 - first) / np.sqrt(2))
    assert trainings.build(load_run(source), tmp_path) == []
    assert "Several trainings" in build_all(folder).read_text()


def test_front_needs_separated_intervals(folder: Path) -> None:
    places = {p.cell: p.place for p in pareto.points(load_run(folder))}
    assert places["fastlightgen"] == "front"  # nothing is as fast
    assert places["euler-4"] == "dominated"
    assert places["dmd2"] == "undecided"  # slower than fastlightgen, better only within the intervals


def test_waterfall_multiplies_to_the_measured_speedup(folder: Path) -> None:
    run = load_run(folder)
    bars = waterfall.bars(run, run.cell("fastlightgen"))
    assert [b.label for b in bars[:3]] == ["steps 50 → 4", "passes a step 2 → 1", "blocks kept 70 %"]
    gains = np.prod([b.end / b.start for b in bars if not b.total])
    assert gains == pytest.approx(speedups(run, run.cell("fastlightgen")).end_to_end.value)
    assert "35.7×" in waterfall.explain(run, run.cell("fastlightgen"))


HOSTILE = (
    "[1] <script>alert(1)</script> $x_{1}$ & 50% #1 | ~^\\input{/etc/passwd} </style> {{ 7*7 }} "
    '"q" <img src=x onerror=alert(1)>'
)


class Tags(HTMLParser):
    """Every start tag with its attributes, and the text of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def hostile_run(source: Path, target: Path) -> Path:
    def change(cells: list[dict[str, Any]]) -> None:
        cells[3] |= {"label": HOSTILE, "changes": HOSTILE}
        cells[3]["settings"] = {HOSTILE: HOSTILE}
        cells[5]["reason"] = HOSTILE

    folder = rewritten(source, target, "cells.json", change)
    told = json.loads((folder / "gallery" / "conditions.json").read_text())
    told[0]["caption"] = HOSTILE
    (folder / "gallery" / "conditions.json").write_text(json.dumps(told))
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(
        json.dumps(run | {"name": HOSTILE, "command": HOSTILE, "environment": {HOSTILE: HOSTILE}})
    )
    return folder


@pytest.fixture(scope="module")
def hostile(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_all(hostile_run(folder, tmp_path_factory.mktemp("hostile") / "run"))


def test_hostile_text_stays_text(index: Path, hostile: Path) -> None:
    plain, tainted = Tags(), Tags()
    plain.feed(index.read_text())
    tainted.feed(hostile.read_text())
    scripts = [sum(tag == "script" for tag, _ in page.tags) for page in (plain, tainted)]
    assert scripts[0] == scripts[1]
    assert not any("onerror" in attributes for _, attributes in tainted.tags)
    assert not any(tag == "img" and not str(a.get("src")).startswith("data:image/") for tag, a in tainted.tags)
    assert "&lt;script&gt;alert(1)" in hostile.read_text() and "{{ 7*7 }}" in hostile.read_text()
    for line in (hostile.parent / "tables" / "main.md").read_text().splitlines():
        assert "<script" not in line and "<img" not in line
    assert read_csv(hostile).loc["fastlightgen", "label"] == HOSTILE


def test_page_loads_nothing(index: Path) -> None:
    page = Tags()
    page.feed(index.read_text())
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "href", "data", "poster", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:image/", "#", "figures/")), (tag, name, target)
        assert tag not in ("link", "iframe", "object", "embed", "base")
    style = "".join(re.findall(r"<style>(.*?)</style>", index.read_text(), re.S))
    assert "@import" not in style and "url(" not in style
    scripts = "".join(re.findall(r"<script>(.*?)</script>", index.read_text(), re.S))
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(|https?://(?!www\.w3\.org/2000/svg)", scripts)
    assert index.stat().st_size < 25 * 2**20


def test_gallery_carries_the_very_pixels(folder: Path) -> None:
    run = load_run(folder)
    found = gallery.payload(run, {c.cell: "#000000" for c in run.cells})
    assert found is not None and run.gallery is not None
    assert found["cells"][0]["cell"] == "real"
    url = found["conditions"][1]["clips"]["fastlightgen"]
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))
    video = run.gallery.videos["fastlightgen"][1]
    assert strip.shape == (64, 17 * 64, 3)
    assert (strip.reshape(64, 17, 64, 3).transpose(1, 0, 2, 3) == video).all()
    few = gallery.encoded(run.gallery, gallery.columns(run, run.gallery), budget=1)
    assert few == []  # too small a budget leaves clips out rather than growing the page


def test_figures_embed_their_fonts(index: Path) -> None:
    for name in ("pareto", "profile", "per_condition", "waterfall", "importance", "training_curves", "filmstrip"):
        pdf = (index.parent / "figures" / f"{name}.pdf").read_bytes()
        assert b"/Type3" not in pdf and b"FontFile2" in pdf
        assert (index.parent / "figures" / f"{name}.png").stat().st_size > 10_000


def test_without_optional_parts(folder: Path, tmp_path: Path) -> None:
    bare = rewritten(folder, tmp_path / "bare", "run.json", lambda run: run.update(finished=None, seconds=None))
    shutil.rmtree(bare / "gallery")
    shutil.rmtree(bare / "curves")
    (bare / "importance.json").unlink()
    page = build_all(bare).read_text()
    assert "This run is in progress: 16 of 18 steps done, 2 failed." in page and "This run has no clips" in page
    drawn = {p.stem for p in (bare / "report" / "figures").glob("*.png")}
    assert drawn == {"pareto", "per_condition", "profile", "waterfall"}


def test_build_all_replaces_the_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reports.BUILT_IN", {"main_table": "reports.main_table:build"})  # the seam, not the drawing
    folder = make_run(tmp_path / "run", conditions=6, samples=1, pairs=6, clips=1)
    build_all(folder)
    (folder / "report" / "stale.txt").write_text("old")
    build_all(folder)
    assert not (folder / "report" / "stale.txt").exists()
    assert not list(folder.glob(".report-*"))


def test_a_failing_report_is_named_on_the_page(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = rewritten(folder, tmp_path / "run", "run.json", lambda run: None)
    shutil.rmtree(copy / "gallery")

    def broken(run: object, out: Path) -> list[Path]:
        raise RuntimeError("no <b>luck</b>")

    monkeypatch.setattr("reports.BUILT_IN", {name: f"reports.{name}:build" for name in ("importance", "pareto")})
    monkeypatch.setattr("reports.importance.build", broken)
    page = build_all(copy).read_text()
    assert "report importance could not be made: RuntimeError: no &lt;b&gt;luck&lt;/b&gt;" in page
    assert (copy / "report" / "figures" / "pareto.png").exists()


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("cells.json", "[{", "not readable as JSON"),
        ("cells.json", '[{"cell": "a"}]', "method: Field required"),
        ("run.json", "{}", "name"),
        ("results.parquet", "nonsense", "not readable as Parquet"),
        ("importance.json", '{"blocks": [0, 1], "x0_error": [1.0]}', "1 values for 2 blocks"),
        ("curves/dmd2.match.jsonl", "{oops\n{}", "line 1 is not JSON"),
    ],
)
def test_damaged_files_are_named(folder: Path, tmp_path: Path, name: str, content: str, word: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("report"))
    (copy / name).write_text(content)
    with pytest.raises(RunFolderError, match=re.escape(word)) as error:
        load_run(copy)
    assert name.split("/")[-1] in str(error.value) and "\n" not in str(error.value)


def test_results_must_agree_with_their_status(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("report"))
    table = pd.read_parquet(folder / "results.parquet")
    hollow = table.copy()
    hollow.loc[hollow.index[0], ["value", "status"]] = [np.nan, "ok"]
    hollow.to_parquet(copy / "results.parquet")
    with pytest.raises(RunFolderError, match="hold no number"):
        load_run(copy)
    filled = table.copy()
    filled.loc[filled.index[0], ["value", "status"]] = [0.0, "missing"]
    filled.to_parquet(copy / "results.parquet")
    with pytest.raises(RunFolderError, match="missing rows hold a number"):
        load_run(copy)
    table.assign(cell="ghost").to_parquet(copy / "results.parquet")
    with pytest.raises(RunFolderError, match="ghost"):
        load_run(copy)


def test_paper_numbers_are_those_of_the_source(folder: Path) -> None:
    rows = {(r["table"], r["row"], r["metric"]): r for r in paper_numbers.load()}
    assert rows["Table 2", "FastLightGen", "time"]["value"] == "28.3"
    assert rows["Table 2", "MagicDistillation", "average"]["value"] == "0.798"
    assert rows["Table 2", "ICMD", "average"]["value"] == ""  # compared in the paper, not found: empty, never 0
    assert rows["Table 5", "beta2 = 0.75 (beta1 = 3.5)", "dynamic_degree"]["value"] == "1.000"
    assert all(tuple(r) == paper_numbers.COLUMNS and r["source"] for r in rows.values())
    assert float(rows["Speed", "FastLightGen", "measured_speedup"]["value"]) == pytest.approx(885 / 28.3, abs=0.05)
    beside = paper_numbers.beside(load_run(folder))
    assert all(n.comparable == "no" and n.why for n in beside if n.ours)
    assert any(n.ours for n in beside) and not any(n.ours for n in beside if n.row == "LCM")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("which", ["index", "hostile"])
def test_latex_compiles_at_page_width(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tables = request.getfixturevalue(which).parent / "tables"
    body = "\n".join(path.read_text() for path in sorted(tables.glob("*.tex")))
    head = r"\documentclass[twocolumn]{article}\usepackage[a4paper,margin=2cm]{geometry}\usepackage{booktabs}"
    (tmp_path / "t.tex").write_text(rf"{head}\begin{{document}}{body}\end{{document}}")
    done = subprocess.run(
        ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
    )
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    if which == "index":
        assert "Overfull \\hbox" not in log, log[-3000:]


CHECKS = """
<script>
const faults = [];
addEventListener("error", (e) => faults.push(String(e.message)));
addEventListener("load", () => setTimeout(async () => {
  const wait = (ms) => new Promise((r) => setTimeout(r, ms)), found = {};
  const frame = () => Number(document.getElementById("scrub").value);
  const key = (k) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: k, bubbles: true }));
  if (document.getElementById("play").textContent === "Pause") key(" ");
  found.paused = document.getElementById("play").textContent === "Play";
  const before = frame();
  key("ArrowRight");
  found.stepped = frame() === (before + 1) % 17;
  key(" ");
  await wait(600);
  found.plays = frame() !== (before + 1) % 17;
  const table = document.querySelector("table.sortable"), button = table.querySelectorAll("thead button")[2];
  const column = () => [...table.tBodies[0].rows].map((r) => r.cells[2].dataset.value);
  button.click();
  found.sorted = column();
  document.getElementById("clips").scrollIntoView();
  await wait(500);
  const canvas = document.querySelector("#clips canvas");
  const painted = (c) => c.getContext("2d").getImageData(0, 0, 64, 64).data.some((v, i) => i % 4 !== 3 && v > 0);
  found.drawn = painted(canvas);
  const last = document.querySelector(".clip-row:last-child canvas");
  last.scrollIntoView();
  await wait(500);
  found.drawnLast = painted(last);
  document.querySelector("#plot .point").dispatchEvent(new MouseEvent("click", { bubbles: true }));
  found.picked = document.querySelectorAll("tr.picked").length;
  found.points = document.querySelectorAll("#plot .point").length;
  const theme = document.documentElement.dataset.theme;
  document.getElementById("theme").click();
  found.theme = document.documentElement.dataset.theme !== theme;
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  console.log("CHECKED" + btoa(JSON.stringify({ ...found, faults })) + "END");
}, 300));
</script>
"""
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
@pytest.mark.parametrize("width", [1400, 400])
def test_page_works_in_a_browser(index: Path, tmp_path: Path, width: int) -> None:
    page = tmp_path / "index.html"
    page.write_text(index.read_text().replace("<body>", "<body>" + CHECKS, 1))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900",
        "--enable-logging=stderr",
        "--remote-debugging-port=0",
    ]
    with subprocess.Popen(
        [str(BROWSER), *flags, page.as_uri()], stderr=subprocess.PIPE, text=True, errors="replace"
    ) as browser:
        guard = threading.Timer(60, browser.kill)
        guard.start()
        said, found = [], None
        assert browser.stderr is not None
        for line in browser.stderr:
            said += [line] if "CONSOLE" in line else []
            if found := re.search(r"CHECKED(.*?)END", line):
                break
        guard.cancel()
        browser.terminate()
    assert found, said
    checked = json.loads(base64.b64decode(found.group(1)))
    assert checked["faults"] == [] and len(said) == 1, said
    assert checked["paused"] and checked["stepped"] and checked["plays"] and checked["drawn"] and checked["drawnLast"]
    assert checked["theme"]
    numbers = [float(v) for v in checked["sorted"] if v]
    assert numbers == sorted(numbers, reverse=True) and checked["sorted"][-1] == ""  # missing sorts last
    assert checked["points"] == 5 and checked["picked"] >= 3
    assert checked["overflow"] <= 0  # nothing wider than the window
