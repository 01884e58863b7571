"""Table of `flgbench latency`, from the document it wrote: all numbers are derived from its samples here.

Medians over conditions; speed-ups over the reference row of the same mode, paired by condition, with 95 % intervals from two
conditions on. A missing number keeps its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flgbench.metrics.stats import Interval, speedup
from reports.tables import Column, Entry, Row, Table

STAGES = ("text_s", "denoise_s", "decode_s")
NO_CLIPS = "no whole clips were made, by --passes-only"


@dataclass(frozen=True)
class Measured:
    """A derived number; `value` None with the reason when missing; bounds None where there is no interval."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Summary:
    """One row: what it is and its derived numbers by name."""

    row: str
    label: str
    mode: str
    kind: str
    nfe: int
    kept_blocks: float
    kept_parameters: float
    values: dict[str, Measured]

    def record(self) -> dict[str, Any]:
        """Plain data, for `--json`."""
        return asdict(self)


class _Samples:
    """The rows of a document, by row and metric."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in document["rows"]:
            self.rows.setdefault((row["row"], row["metric"]), []).append(row)

    def by_condition(self, row: str, metric: str) -> dict[int, float]:
        """Median of the samples of each condition."""
        found: dict[int, list[float]] = {}
        for sample in self.rows.get((row, metric), []):
            if sample["value"] is not None:
                found.setdefault(sample["condition"], []).append(sample["value"])
        return {condition: float(np.median(values)) for condition, values in found.items()}

    def median(self, row: str, metric: str, otherwise: str) -> Measured:
        samples = self.rows.get((row, metric), [])
        values = [s["value"] for s in samples if s["value"] is not None]
        if not values:
            reasons = [s["reason"] for s in samples if s["reason"]]
            return Measured(reason=reasons[0] if reasons else otherwise)
        return Measured(float(np.median(values)), n=len(values))


def summaries(document: dict[str, Any]) -> list[Summary]:
    """One a row of the document, in its order."""
    samples, cells = _Samples(document), document["cells"]
    found = []
    for cell in cells:
        reference = next((c for c in cells if c["kind"] == "reference" and c["mode"] == cell["mode"]), None)
        found.append(_summary(cell, reference, samples, document["peak_flops"]))
    return found


def _summary(cell: dict[str, Any], reference: dict[str, Any] | None, samples: _Samples, peak: dict[str, Any]) -> Summary:
    row = cell["row"]
    values = {
        name: samples.median(row, name, NO_CLIPS)
        for name in (*STAGES, "end_to_end_s", "pass_s", "first_pass_s", "peak_memory_gib", "energy_j", "energy_above_idle_j")
    }
    values["flops"] = Measured(cell["pass_flops"]) if cell["pass_flops"] else Measured(reason="no formula for this family")
    values["mfu"] = _mfu(values["pass_s"], values["flops"], peak)
    values["overhead"] = _overhead(cell, samples)
    values["from_passes_s"] = Measured(cell["nfe"] * (values["pass_s"].value or 0.0), n=values["pass_s"].n)
    if "cache_threshold" in cell["sampler"]:
        values["from_passes_s"] = Measured(reason="a cache cuts passes short")
    if reference is None:
        alone = Measured(reason="no reference (euler) in this mode")
        values |= dict.fromkeys(("nominal", "work", "denoise", "end_to_end"), alone)
    else:
        ratio = reference["nfe"] * reference["kept_blocks"] / (cell["nfe"] * cell["kept_blocks"])
        values["nominal"], values["work"] = Measured(ratio), values["flops"]
        if cell["pass_flops"]:
            values["work"] = Measured(reference["nfe"] * reference["pass_flops"] / (cell["nfe"] * cell["pass_flops"]))
        for name, metric in (("denoise", "denoise_s"), ("end_to_end", "end_to_end_s")):
            values[name] = _speedup(samples, reference["row"], row, metric)
    parameters = cell["parameters"] / cell["teacher_parameters"]
    kept = cell["kept_blocks"], parameters
    return Summary(row, cell["label"], cell["mode"], cell["kind"], cell["nfe"], *kept, values)


def _mfu(seconds: Measured, flops: Measured, peak: dict[str, Any]) -> Measured:
    """FLOPs by formula / seconds / the device's peak by data sheet."""
    if seconds.value is None or flops.value is None:
        return Measured(reason=seconds.reason or flops.reason)
    if peak["value"] is None:
        return Measured(reason=peak["reason"])
    return Measured(flops.value / seconds.value / peak["value"], n=seconds.n)


def _overhead(cell: dict[str, Any], samples: _Samples) -> Measured:
    """What the sampling loop takes beyond its bare passes, as a share of them; median over conditions."""
    if "cache_threshold" in cell["sampler"]:
        return Measured(reason="a cache cuts passes short")
    loops, passes = (samples.by_condition(cell["row"], metric) for metric in ("denoise_s", "pass_s"))
    shares = [loops[i] / (cell["nfe"] * passes[i]) - 1 for i in loops if i in passes]
    return Measured(float(np.median(shares)), n=len(shares)) if shares else Measured(reason=NO_CLIPS)


def _speedup(samples: _Samples, reference: str, row: str, metric: str) -> Measured:
    theirs, mine = samples.by_condition(reference, metric), samples.by_condition(row, metric)
    pairs = sorted(theirs.keys() & mine.keys())
    if not pairs:
        return Measured(reason=NO_CLIPS)
    if reference == row:
        return Measured(1.0, n=len(pairs))
    found: Interval = speedup(np.array([theirs[i] for i in pairs]), np.array([mine[i] for i in pairs]))
    if found.n < 2:
        return Measured(found.value, n=found.n, reason="one condition gives no interval")
    return Measured(found.value, found.low, found.high, found.n)


def seconds_text(value: float) -> str:
    return f"{value:.3g}" if value >= 0.1 else f"{value:.2g}"


def _ratio(value: float) -> str:
    return f"{value:.3g}×"


@dataclass(frozen=True)
class _Shown:
    """A column of the table: the derived number, its title and how it is printed."""

    key: str
    title: str
    unit: str
    text: Callable[[float], str]
    meaning: str


SHOWN = (
    _Shown("flops", "pass", "TFLOP", lambda v: f"{v / 1e12:.4g}", "FLOPs of a pass by formula, attention included"),
    _Shown("pass_s", "pass", "s", seconds_text, "a bare network pass, one clip"),
    _Shown("mfu", "MFU", "%", lambda v: f"{100 * v:.1f}", "share of the device's dense peak that a pass reaches"),
    _Shown("text_s", "text, frame", "s", seconds_text, "encoding of captions and first frame"),
    _Shown("denoise_s", "denoise", "s", seconds_text, "all passes of a clip with their loop"),
    _Shown("from_passes_s", "NFE × pass", "s", seconds_text, "what they take without a loop"),
    _Shown("overhead", "loop", "%", lambda v: f"{100 * v:.2g}", "what the loop takes beyond its passes"),
    _Shown("decode_s", "decode", "s", seconds_text, "latents to pixels on the host"),
    _Shown("end_to_end_s", "clip", "s", seconds_text, "all of it"),
    _Shown("nominal", "nominal", "", _ratio, "NFE × kept blocks, arithmetic"),
    _Shown("work", "by FLOPs", "", _ratio, "NFE × FLOPs of a pass, arithmetic"),
    _Shown("denoise", "denoise speed-up", "", _ratio, "measured over the reference of the same mode"),
    _Shown("end_to_end", "clip speed-up", "", _ratio, "the same end to end"),
    _Shown("peak_memory_gib", "memory", "GiB", lambda v: f"{v:.3g}", "weights of the row's parts and the peak beyond them"),
    _Shown("energy_j", "energy", "J", lambda v: f"{v:.4g}", "of the board for a clip, idle included"),
)


IN_TERMINAL = (
    "pass_s",
    "mfu",
    "denoise_s",
    "overhead",
    "end_to_end_s",
    "nominal",
    "work",
    "denoise",
    "end_to_end",
    "peak_memory_gib",
)


def table(document: dict[str, Any]) -> Table:
    """One row a timed row."""
    kept_columns = Column("kept", "blocks", "%"), Column("kept_parameters", "parameters", "%")
    columns = (Column("nfe", "NFE"), *kept_columns, *(Column(s.key, s.title, s.unit) for s in SHOWN))
    rows = []
    for found in summaries(document):
        kept = {"kept": found.kept_blocks, "kept_parameters": found.kept_parameters}
        entries = {"nfe": Entry(str(found.nfe), found.nfe)} | {k: Entry(f"{100 * v:.0f}", v) for k, v in kept.items()}
        entries |= {shown.key: _entry(found.values[shown.key], shown.text) for shown in SHOWN}
        label = found.label if found.mode == "eager" else f"{found.label}, compiled"
        rows.append(Row(found.row, label, found.mode, entries))
    legend = "; ".join(f"{s.title} ({s.unit}): {s.meaning}" if s.unit else f"{s.title}: {s.meaning}" for s in SHOWN)
    return Table("latency", title_of(document), _caption(document), columns, tuple(rows), legend + ".")


def _entry(found: Measured, text: Callable[[float], str]) -> Entry:
    if found.value is None:
        return Entry(note=found.reason)
    if found.low is None or found.high is None:
        return Entry(text(found.value), found.value, n=found.n, note=found.reason)
    return Entry(text(found.value), found.value, found.low, found.high, text(found.low), text(found.high), found.n)


def title_of(document: dict[str, Any]) -> str:
    settings = document["settings"]
    frames, height, width = settings["clip"]
    return f"{settings['model']} {settings['scale']}, {frames} frames of {height}×{width}, {settings['dtype']}"


def _caption(document: dict[str, Any]) -> str:
    machine, settings, attention = document["machine"], document["settings"], document["attention"]
    threads = f"{settings['threads']} thread{'s' if settings['threads'] > 1 else ''}"
    device = machine["gpu"] if machine["device"] == "cuda" else f"{machine['cpu']}, {threads}"
    ran = sorted({name for names in attention["ran"].values() for name in names})
    conditions = f"{settings['pairs']} condition{'s' if settings['pairs'] > 1 else ''}"
    said = f"On {device}; torch {machine['torch']}, diffusers {machine['diffusers']}; attention by {', '.join(ran)}"
    return f"{said}; {conditions}, one clip at a time. {document['note']}".strip()


def lines(document: dict[str, Any]) -> list[str]:
    """The short table for the terminal."""
    shown = [next(s for s in SHOWN if s.key == key) for key in IN_TERMINAL]
    grid = [["", "NFE", "blocks", "parameters", *(f"{s.title} ({s.unit})" if s.unit else s.title for s in shown)]]
    for found in summaries(document):
        values = [(found.values[s.key], s.text) for s in shown]
        numbers = [text(v.value) if v.value is not None else "-" for v, text in values]
        grid.append([found.row, str(found.nfe), f"{found.kept_blocks:.0%}", f"{found.kept_parameters:.0%}", *numbers])
    widths = [max(len(row[i]) for row in grid) for i in range(len(grid[0]))]
    made = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in grid]
    missing = {v.reason: s.title for found in summaries(document) for s in shown if (v := found.values[s.key]).reason}
    return [title_of(document), _caption(document), *made, *(f"{title}: {reason}" for reason, title in missing.items())]
