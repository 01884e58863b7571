"""From finished artifacts to the run folder that reports read: tidy results, cells, steps, curves, gallery.

Works at any time of a run: what is not there yet is said to be missing, with the reason.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from flgbench.cells import Cell, Skipped
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.metrics.descriptive import psnr
from flgbench.metrics.table import ALL_METRICS, COLUMNS, SOUNDING, WITHOUT_TRUTH
from flgbench.plan import Plan
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.runner import BLOCKED, CACHED, DONE, FAILED, WAITING, Status
from flgbench.steps.loading import CAPTIONS
from flgbench.store import Store, write_json

LATENCY = ("text_s", "denoise_s", "decode_s", "end_to_end_s")
GALLERY_CLIPS = 12
QUALITY = tuple(name for name in ALL_METRICS if name != "teacher_psnr" and name not in WITHOUT_TRUTH | SOUNDING)


def collect(
    plan: Plan, store: Store, run: RunSettings, status: Mapping[str, Status], folder: Path, facts: dict[str, Any]
) -> None:
    """Write everything `reports` needs into `folder`. `facts` is the content of run.json besides the settings."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", facts | {"settings": run.model_dump(mode="json")})
    cells = [_cell_record(c, plan, store, status) for c in plan.cells]
    write_json(folder / "cells.json", cells + [_skipped_record(c) for c in plan.skipped])
    write_json(folder / "steps.json", [_step_record(k, plan, store, status[k]) for k in plan.steps])
    table = tidy(plan, store, run, status, facts["name"])
    table.to_parquet(folder / "results.parquet.partial")
    (folder / "results.parquet.partial").replace(folder / "results.parquet")
    _copy_importance(plan, store, folder)
    _copy_curves(plan, store, folder)
    _write_gallery(plan, store, run, folder)


def tidy(plan: Plan, store: Store, run: RunSettings, status: Mapping[str, Status], name: str) -> pd.DataFrame:
    """The long table: one row a number; a measure that does not exist has one row with status and reason."""
    parts = []
    latency_key = next((k for k, s in plan.steps.items() if s.kind == "latency"), None)
    latency = _read(store, latency_key)
    for cell in plan.cells:
        found = _read(store, cell.quality)
        parts.append(found.assign(cell=cell.name) if found is not None else _missing(cell, cell.quality, status))
        parts.append(_agreement(cell, plan, store))
        if latency is not None and cell.measures_latency:
            parts.append(latency[latency["cell"] == cell.name])
        else:
            key = latency_key if cell.measures_latency else None
            parts.append(_missing(cell, key, status, LATENCY))
    parts += [_rows_without_value(c.name, (*ALL_METRICS, *LATENCY), f"skipped: {c.reason}") for c in plan.skipped]
    table = pd.concat(parts, ignore_index=True)
    methods = {c.name: c.method for c in plan.cells if c.kind in ("method", "variant")}
    seeds = {c.name: run.seed + c.repeat for c in plan.cells}
    table["run"], table["family"], table["scale"] = name, run.model, run.scale
    table["seed"], table["method"] = table["cell"].map(seeds), table["cell"].map(methods).fillna("")
    table["higher_is_better"] = table["higher_is_better"].astype("boolean")
    table["value"] = table["value"].astype(float)
    return table[list(COLUMNS)]


def _agreement(cell: Cell, plan: Plan, store: Store) -> pd.DataFrame:
    """`teacher_psnr` of a cell's clips: here, not in its quality step, so that no cell has to wait for the reference."""
    reference = next((c for c in plan.cells if c.kind == "reference"), None)
    rows: dict[str, Any] = {"condition": -1, "sample": 0, "value": np.nan, "status": "missing"}
    if cell.skipped:
        rows["reason"] = f"skipped: {cell.skipped}"
    elif reference is None or reference.name == cell.name:
        rows["reason"] = "the run has no reference" if reference is None else "it is the reference"
    elif not (store.is_done(reference.sample) and store.is_done(cell.sample)):
        rows["reason"] = "the clips of the cell or of the reference are not there"
    else:
        own, other = (load_file(store.path(k) / "videos.safetensors")["video"] for k in (cell.sample, reference.sample))
        conditions, samples = zip(*json.loads((store.path(cell.sample) / "identities.json").read_text()), strict=True)
        value = psnr(own, other)
        rows = {"condition": conditions, "sample": samples, "value": value, "status": "ok", "reason": ""}
    info = ALL_METRICS["teacher_psnr"]
    told = {"cell": cell.name, "metric": "teacher_psnr", "unit": info.unit, "higher_is_better": info.higher_is_better}
    return pd.DataFrame(rows | told, index=None if rows["status"] == "ok" else [0])


def _read(store: Store, key: str | None) -> pd.DataFrame | None:
    return pd.read_parquet(store.path(key) / "results.parquet") if key and store.is_done(key) else None


def _missing(
    cell: Cell,
    key: str | None,
    status: Mapping[str, Status],
    metrics: tuple[str, ...] = QUALITY,
) -> pd.DataFrame:
    if cell.skipped:
        reason = f"skipped: {cell.skipped}"
    elif key is None:
        if cell.repeat:
            reason = f"not timed: the first training of {cell.method} is"
        else:
            untimed = cell.sampler is None and cell.kind != "open"
            reason = "no network to time" if untimed else "not timed: the run has no reference to compare with"
    else:
        reason = f"{status[key].state}: {status[key].reason}".rstrip(": ")
    return _rows_without_value(cell.name, metrics, reason)


def _rows_without_value(cell: str, metrics: tuple[str, ...], reason: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "cell": cell,
            "metric": list(metrics),
            "condition": -1,
            "sample": 0,
            "value": np.nan,
            "unit": [ALL_METRICS[m].unit if m in ALL_METRICS else "s" for m in metrics],
            "higher_is_better": [ALL_METRICS[m].higher_is_better if m in ALL_METRICS else False for m in metrics],
            "status": "missing",
            "reason": reason,
        }
    )


def _cell_record(cell: Cell, plan: Plan, store: Store, status: Mapping[str, Status]) -> dict[str, Any]:
    keys = [key for key in (*(key for _, key in cell.stages), cell.sample, cell.quality) if key]
    bad = next((k for k in keys if status[k].state in (FAILED, BLOCKED)), None)
    finished = all(status[k].state in (CACHED, DONE) for k in keys)
    state = status[bad].state if bad else "done" if finished else WAITING
    trained = [store.facts(key) for _, key in cell.stages if store.is_done(key)] if cell.kind != "external" else []
    made = store.facts(cell.sample) if cell.sample and store.is_done(cell.sample) else {}
    teacher_key = next(k for k, s in plan.steps.items() if s.kind == "teacher")
    teacher = store.facts(teacher_key) if store.is_done(teacher_key) else {}
    network = cell.sampler is not None and made and teacher
    own = made.get("open", {})  # what an open model told of its own network
    told = trained or (network and not cell.stages)  # a sampler of the teacher trains nothing: 0 is its true cost
    return {
        "cell": cell.name,
        "method": cell.method if cell.kind in ("method", "variant") else "",
        "sweep": cell.sweep,
        "point": dict(cell.point),
        "repeat": cell.repeat,
        "label": cell.label,
        "kind": cell.kind,
        "family": cell.family,
        "changes": cell.changes,
        "nfe": made["nfe"] if network else own.get("nfe"),
        "num_inference_steps": cell.sampler.num_inference_steps if cell.sampler else own.get("num_inference_steps"),
        "guidance_scale": cell.sampler.guidance_scale if cell.sampler else None,
        "sampler": cell.sampler.kind if cell.sampler else None,
        "kept_parameters": made["parameters"] / teacher["parameters"] if network else None,
        "kept_blocks": made["blocks"] / teacher["blocks"] if network else None,
        "parameters": made["parameters"] if network else own.get("parameters"),
        "flops": made["flops"] if network else None,
        "training_passes": round(sum(f["passes"] for f in trained)) if told else None,
        "training_seconds": sum(f["seconds"] for f in trained) if told else None,
        "status": "skipped" if cell.skipped else state,
        "reason": cell.skipped or (status[bad].reason if bad else "" if finished else "not finished when this was written"),
        "settings": dict(cell.settings) | own,
        "inferred": cell.inferred,
        "card": made.get("card", {}),
        "stages": [{"name": name, "key": key} for name, key in cell.stages],
    }


def _skipped_record(cell: Skipped) -> dict[str, Any]:
    told = {"label": cell.label, "kind": cell.kind, "family": cell.family, "changes": cell.changes}
    method = cell.name if cell.kind == "method" else ""
    return {"cell": cell.name, "method": method, "status": "skipped", "reason": cell.reason} | told


def _step_record(key: str, plan: Plan, store: Store, status: Status) -> dict[str, Any]:
    step = plan.steps[key]
    cells = [c.name for c in plan.cells if key in (c.sample, c.quality, *(k for _, k in c.stages))]
    seconds = store.facts(key).get("seconds") if store.is_done(key) else None
    return {
        "key": key,
        "kind": step.kind,
        "name": step.name,
        "cells": cells,
        "status": status.state,
        "reason": status.reason,
        "seconds": seconds,
    }


def _copy_importance(plan: Plan, store: Store, folder: Path) -> None:
    for key in plan.steps:
        source = store.path(key) / "importance.json"
        # A selection that measured nothing has the same file without the errors, and nothing to draw.
        if store.is_done(key) and source.exists() and "x0_error" in json.loads(source.read_text()):
            shutil.copy(source, folder / "importance.json")
            return


def _copy_curves(plan: Plan, store: Store, folder: Path) -> None:
    curves = folder / "curves"
    shutil.rmtree(curves, ignore_errors=True)
    curves.mkdir()
    for cell in (c for c in plan.cells if c.kind != "variant"):
        for name, key in cell.stages:
            source = store.path(key) / "curve.jsonl"
            if store.is_done(key) and source.exists():
                shutil.copy(source, curves / f"{cell.name}.{name}.jsonl")


def _write_gallery(plan: Plan, store: Store, run: RunSettings, folder: Path) -> None:
    gallery = folder / "gallery"
    shutil.rmtree(gallery, ignore_errors=True)
    gallery.mkdir()
    count = min(GALLERY_CLIPS, run.conditions)
    for cell in (c for c in plan.cells if c.kind != "variant"):
        if cell.sample and store.is_done(cell.sample):
            video = load_file(store.path(cell.sample) / "videos.safetensors")["video"]
            save_file({"video": thumbnails(video[:count])}, gallery / f"{cell.name}.safetensors")
    if run.suite is not None:
        _write_prompts(plan, store, gallery, count)
        return
    factors = registry("families").get(run.model).clips.draw("test", np.arange(count))
    words = {
        "shape": shapes.SHAPES,
        "colour": shapes.COLOURS,
        "size": shapes.SIZES,
        "direction": shapes.DIRECTIONS,
        "speed": shapes.SPEEDS,
        "background": shapes.BACKGROUNDS,
    }
    records = []
    for i, caption in enumerate(captions_of(factors)):
        named = {key: table[getattr(factors, key)[i]] for key, table in words.items()}
        records.append({"condition": i, "caption": caption} | named)
    (gallery / "conditions.json").write_text(json.dumps(records, indent=1))
    real = torch.as_tensor(shapes.render(factors))
    if not (gallery / "real.safetensors").exists():
        save_file({"video": real}, gallery / "real.safetensors")


def thumbnails(video: torch.Tensor) -> torch.Tensor:
    """Clips (N, T, H, W, 3) uint8 as the page shows them, (N, 17, 64, 64, 3): spread frames, the middle, made small.

    Tiny clips are left as they are.
    """
    frames, side = shapes.FRAMES, shapes.SIZE
    if video.shape[1:4] == (frames, side, side):
        return video.clone()
    height, width = video.shape[2:4]
    size = [max(side, round(side * n / min(height, width))) for n in (height, width)]
    top, left = ((n - side) // 2 for n in size)
    chosen = torch.linspace(0, video.shape[1] - 1, frames).round().long()
    made = []
    for clip in video:  # one by one: full-size ones are large
        small = torch.nn.functional.interpolate(clip[chosen].permute(0, 3, 1, 2).float(), size=size, mode="area")
        made.append(small[:, :, top : top + side, left : left + side].round().to(torch.uint8).permute(0, 2, 3, 1))
    return torch.stack(made).contiguous()


def _write_prompts(plan: Plan, store: Store, gallery: Path, count: int) -> None:
    """The captions of a suite's clips; it has no true ones."""
    key = next(k for k, s in plan.steps.items() if s.kind == "data" and "suite" in s.settings)
    captions = json.loads((store.path(key) / CAPTIONS).read_text())[:count] if store.is_done(key) else []
    (gallery / "conditions.json").write_text(json.dumps([{"condition": i, "caption": c} for i, c in enumerate(captions)]))
