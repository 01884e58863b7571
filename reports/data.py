"""Read a run folder: the only place where reports touch files of the engine.

Everything is validated here, with one clear line for each fault, so that tables and figures can be pure functions of
`RunData`. Derived numbers (estimates, speed-ups, verdicts) are in `reports.aggregates`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flgbench.metrics.table import COLUMNS

CLIP_SHAPE = (17, 64, 64, 3)
T = TypeVar("T")
Status = Literal["cached", "waiting", "running", "done", "failed", "blocked", "skipped"]


class RunFolderError(ValueError):
    """The run folder lacks something or holds something that is not a result; the message names the file."""


class _Record(BaseModel):
    """Unknown keys are kept out: the engine may add facts without breaking older reports."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Inferred(_Record):
    """A setting whose value the paper does not tell."""

    setting: str
    value: Any = None
    note: str = ""


class CellStage(_Record):
    name: str
    key: str = ""


class Cell(_Record):
    """One row of the main table."""

    cell: str
    method: str
    repeat: int = 0  # which of several trainings of the method
    label: str
    kind: Literal["reference", "method", "external", "baseline", "open", "control", "variant"]
    family: str = "none"
    changes: str = ""
    nfe: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    kept_parameters: float | None = Field(None, gt=0, le=1)
    kept_blocks: float | None = Field(None, gt=0, le=1)
    parameters: int | None = None
    flops: int | None = None
    training_passes: int | None = None
    training_seconds: float | None = None
    status: Status
    reason: str | None = None
    settings: dict[str, Any] = {}
    card: dict[str, Any] = {}  # flgbench.card: what its quality numbers depend on
    inferred: tuple[Inferred, ...] = ()
    stages: tuple[CellStage, ...] = ()
    sweep: str = ""  # of a variant: the sweep it is a point of
    point: dict[str, Any] = {}  # and where: axis -> value

    @property
    def failed(self) -> bool:
        """True when the cell has no results to compare, for good or not yet."""
        return self.status in ("failed", "blocked", "skipped") or self.unfinished

    @property
    def unfinished(self) -> bool:
        """True when its steps had not all come to an end when the run folder was written."""
        return self.status in ("waiting", "running")


class Step(_Record):
    """One job of the plan."""

    key: str
    kind: str
    name: str
    cells: tuple[str, ...] = ()
    status: Status
    reason: str | None = None
    seconds: float | None = None


class RunInfo(_Record):
    """What was run, where and how long; `finished` is null while the run is in progress."""

    name: str
    command: str = ""
    settings: dict[str, Any] = {}
    environment: dict[str, str | int | float | bool | None] = {}
    started: str | None = None
    finished: str | None = None
    seconds: float | None = None


class Importance(_Record):
    """Error of the clean estimate and ELBO-weighted error with each block skipped (both: higher = more important)."""

    blocks: tuple[int, ...]
    x0_error: tuple[float, ...]
    elbo: tuple[float, ...] = ()
    redundant: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()  # what each block is called where there are several sorts
    dense_x0_error: float | None = None


@dataclass(frozen=True)
class Gallery:
    """Clips of the same G conditions: `videos[cell]` uint8 (G, 17, 64, 64, 3)."""

    conditions: tuple[dict[str, Any], ...]
    videos: dict[str, np.ndarray]


@dataclass(frozen=True)
class RunData:
    """Everything that a report may use."""

    folder: Path
    run: RunInfo
    cells: tuple[Cell, ...]  # without the variants
    steps: tuple[Step, ...]
    results: pd.DataFrame
    importance: Importance | None = None
    curves: dict[str, pd.DataFrame] = field(default_factory=dict)  # "<cell>.<stage>" -> one row an iteration
    gallery: Gallery | None = None
    variants: tuple[Cell, ...] = ()  # points of sweeps, in the order of their sweeps
    memory: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False, compare=False)  # see aggregates

    def cell(self, name: str) -> Cell:
        """The cell called `name`; KeyError when there is none."""
        for cell in (*self.cells, *self.variants):
            if cell.cell == name:
                return cell
        raise KeyError(f"no cell '{name}'; there are {', '.join(c.cell for c in self.cells)}")

    @property
    def reference(self) -> Cell | None:
        """The cell that speed-ups and verdicts are measured against."""
        return next((c for c in self.cells if c.kind == "reference"), None)


def load_run(folder: Path) -> RunData:
    """Read and check a run folder. Raises RunFolderError, whose message names the file and the fault."""
    folder = Path(folder)
    if not folder.is_dir():
        raise RunFolderError(f"{folder}: no such run folder")
    cells = _parse(folder / "cells.json", TypeAdapter(tuple[Cell, ...]))
    names = [c.cell for c in cells]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise RunFolderError(f"{folder / 'cells.json'}: cell named twice: {', '.join(twice)}")
    importance = folder / "importance.json"
    return RunData(
        folder=folder,
        run=_parse(folder / "run.json", TypeAdapter(RunInfo)),
        cells=tuple(c for c in cells if c.kind != "variant"),
        variants=tuple(c for c in cells if c.kind == "variant"),
        steps=_parse(folder / "steps.json", TypeAdapter(tuple[Step, ...])),
        results=_results(folder / "results.parquet", set(names)),
        importance=_importance(importance) if importance.exists() else None,
        curves={path.stem: _curve(path) for path in sorted((folder / "curves").glob("*.jsonl"))},
        gallery=_gallery(folder / "gallery", names),
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError(f"{path}: missing; is this a run folder?") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunFolderError(f"{path}: not readable as JSON ({error})") from None


def _parse(path: Path, schema: TypeAdapter[T]) -> T:
    try:
        return schema.validate_python(_read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunFolderError(f"{path}: {where or 'content'}: {first['msg']}") from None


def _results(path: Path, cells: set[str]) -> pd.DataFrame:
    """The tidy table, one row per number. A missing number is NaN with a reason, never 0."""
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise RunFolderError(f"{path}: missing; the run has no results yet") from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: not readable as Parquet ({error})") from None
    absent = [name for name in COLUMNS if name not in table.columns]
    if absent:
        raise RunFolderError(f"{path}: columns missing: {', '.join(absent)}")
    strangers = sorted(set(table["cell"].astype(str)) - cells)
    if strangers:
        raise RunFolderError(f"{path}: cells that cells.json does not list: {', '.join(strangers)}")
    statuses = sorted(set(table["status"].astype(str)) - {"ok", "missing"})
    if statuses:
        raise RunFolderError(f"{path}: unknown status: {', '.join(statuses)}")
    table = table.astype({"condition": "int64", "sample": "int64", "value": "float64"})
    hollow = table[(table["status"] == "ok") & table["value"].isna()]
    if len(hollow):
        row = hollow.iloc[0]
        raise RunFolderError(f"{path}: {len(hollow)} ok rows hold no number (first: {row['cell']}, {row['metric']})")
    filled = table[(table["status"] == "missing") & table["value"].notna()]
    if len(filled):
        row = filled.iloc[0]
        raise RunFolderError(f"{path}: {len(filled)} missing rows hold a number ({row['cell']}, {row['metric']})")
    return table


def _importance(path: Path) -> Importance:
    found = _parse(path, TypeAdapter(Importance))
    for name in ("x0_error", "elbo"):
        length = len(getattr(found, name))
        if length != len(found.blocks) and not (name == "elbo" and length == 0):
            raise RunFolderError(f"{path}: {name} has {length} values for {len(found.blocks)} blocks")
    return found


def _curve(path: Path) -> pd.DataFrame:
    """(iterations, named losses); a last line cut off by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise RunFolderError(f"{path}: line {number} is not JSON") from None
    return pd.DataFrame(rows)


def _gallery(folder: Path, cells: list[str]) -> Gallery | None:
    if not (folder / "conditions.json").exists():
        return None
    conditions = _parse(folder / "conditions.json", TypeAdapter(tuple[dict[str, Any], ...]))
    videos = {}
    for cell in cells:
        path = folder / f"{cell}.safetensors"
        if not path.exists():
            continue
        try:
            video = load_file(path)["video"]
        except (SafetensorError, KeyError, OSError) as error:
            raise RunFolderError(f"{path}: holds no readable tensor 'video' ({error})") from None
        if video.dtype != np.uint8 or video.shape != (len(conditions), *CLIP_SHAPE):
            expected = (len(conditions), *CLIP_SHAPE)
            raise RunFolderError(f"{path}: video is {video.dtype} {video.shape}, expected uint8 {expected}")
        videos[cell] = video
    return Gallery(conditions, videos)
