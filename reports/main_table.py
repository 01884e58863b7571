"""Main table: every cell's quality against the truth, and its speed, with intervals (Markdown, CSV, LaTeX).

Quality is split in five printed tables (accuracy, motion, image, judges, diversity), speed is the last; each fits a page's
width, the CSV holds all columns in one. Best is bold and second underlined among all rows but controls (real clips, VAE
round trip, frozen image, blocks deleted without a method), which are shown to read the others.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reports.aggregates import Estimate, Ratio, estimate, ninth_decile, ordered_cells, paired, speedups, units
from reports.catalogue import ACCURACY, BY_KEY, DIVERSITY, HEADLINE, IMAGE, JUDGED, MOTION, SOUND, SUITE, Shown, times
from reports.data import Cell, RunData
from reports.tables import Column, Entry, Rank, Row, Table, write
from reports.verdicts import conditions_to_win, verdict

RANKED = ("reference", "method", "external", "baseline", "open")
RANKS = "Bold: best; underlined: second, among all but controls, on printed digits."


def build(run: RunData, out: Path) -> list[Path]:
    """Main tables of accuracy, motion, image, judges, diversity and speed: tables/main.md, main.csv and one .tex each."""
    return write(tables(run), out / "tables", "main")


def tables(run: RunData) -> list[Table]:
    """Accuracy, motion, image, trained judges, diversity and speed; of a suite first what needs no truth, and of clips
    with a sound how they follow it."""
    first = [unaided(run)] if run.run.settings.get("suite") else []
    heard = [sound(run)] if run.results["metric"].eq(SOUND[0].key).any() and not first else []
    return [*first, accuracy(run), motion(run), *heard, image(run), judged(run), diversity(run), speed(run)]


def unaided(run: RunData) -> Table:
    """What can be told of clips made from images and prompts alone."""
    caption = "Without ground truth. Only the first frame has a right answer; motion and sharpness only describe."
    return _measures(run, "suite", "Images and prompts", caption, SUITE)


def accuracy(run: RunData) -> Table:
    """Shares of samples that are right, and the verdict."""
    columns = [
        Column("nfe", "NFE", meaning="network passes for one clip; guidance counts two"),
        *(_column(s) for s in ACCURACY),
        Column("verdict", "Verdict", meaning="wins: at least 99 % of the reference, and faster, by interval"),
    ]
    rows = []
    for cell in ordered_cells(run):
        entries = {s.key: estimated(s, estimate(run, cell.cell, s.key)) for s in ACCURACY}
        answer = verdict(run, cell)
        spoken = "" if answer.answer in ("control", "failed") else answer.answer
        told = answer.answer in ("failed", "undecided") or "less diverse" in answer.why
        note = answer.why if told else ""
        entries |= {"nfe": counted(cell.nfe, cell), "verdict": Entry(text=spoken, note=note)}
        rows.append(Row(cell.cell, cell.label, cell.kind, entries))
    legend = _legend(run) + (
        " Verdict: 'wins' only when the paired interval of the joint accuracy lies at or above 99 % of the reference "
        "and the denoise speed-up's above 1; 'below' when it lies under 99 %, or seeds of one condition differ less."
    )
    legend += _too_few(run)
    caption = "Accuracy against the known truth: share of samples with every captioned factor right."
    return _ranked("accuracy", "Accuracy", caption, columns, rows, list(ACCURACY), legend)


def motion(run: RunData) -> Table:
    """Trajectory, amount and steadiness of motion."""
    caption = "Motion. The ratio is best at 1; flow and interpolation describe only: jitter raises them."
    return _measures(run, "motion", "Motion", caption, MOTION)


def sound(run: RunData) -> Table:
    """How the main object's size follows the sound."""
    caption = "Sound. Size against the one asked for, frame by frame; a lag is told only where the size follows at all."
    return _measures(run, "sound", "Sound", caption, SOUND)


def image(run: RunData) -> Table:
    """The first frame, sharpness, and what becomes of the main object's area and colour."""
    return _measures(run, "image", "Image", "Image fidelity. Sharpness is best at 1.", IMAGE)


def judged(run: RunData) -> Table:
    """What a classifier, a CLIP model and LPIPS say, and the field's set distances on the classifier's features."""
    caption = "Trained judges. They saw procedural clips only; the distances are not FVD, the cosine is not OpenAI's CLIP."
    return _measures(run, "judged", "Judges", caption, JUDGED)


def diversity(run: RunData) -> Table:
    """Whether what is not told comes out as varied as it is in the data."""
    caption = "Diversity. Read a row against the real clips': most of these depend on the number of clips, TV is never 0."
    return _measures(run, "diversity", "Diversity", caption, DIVERSITY)


def _measures(run: RunData, name: str, title: str, caption: str, shown: tuple[Shown, ...]) -> Table:
    rows = [
        Row(c.cell, c.label, c.kind, {s.key: estimated(s, estimate(run, c.cell, s.key)) for s in shown})
        for c in ordered_cells(run)
    ]
    return _ranked(name, title, caption, [_column(s) for s in shown], rows, list(shown), _legend(run))


def speed(run: RunData) -> Table:
    """Latency medians, the three speed-ups and the training budget."""
    reference = run.reference
    slowest = estimate(run, reference.cell, "end_to_end_s").value if reference else None
    unit, scale = ("s", 1.0) if slowest is not None and slowest >= 10 else ("ms", 1000.0)
    latency = [
        replace(BY_KEY[key], unit=unit, scale=scale, decimals=2 if unit == "s" else 1)
        for key in ("denoise_s", "end_to_end_s")
    ]
    up = "geometric mean over paired conditions, reference time over this time"
    columns = [
        Column("nfe", "NFE", meaning="network passes for one clip; guidance counts two"),
        Column("kept", "Kept", "params / blocks", meaning="share of the teacher's parameters and blocks that remain"),
        Column("flops", "Compute", "GFLOP", "↓", "to denoise one clip, with attention, without what a cache leaves out"),
        *(_column(s) for s in latency),
        Column("p90", "p90", unit, "↓", "end to end, 90th percentile: the slowest tenth takes longer"),
        Column("nominal", "Nominal", "speed-up", "↑", "NFE × kept blocks, reference over this one: arithmetic"),
        Column("denoise", "Denoise", "speed-up", "↑", f"denoising loop only; {up}"),
        Column("end_to_end", "End to end", "speed-up", "↑", f"text, denoising and decoding; {up}"),
        Column("peak_memory_mb", "Memory", "MB", "↓", BY_KEY["peak_memory_mb"].meaning),
        Column("training_passes", "Training", "passes", "", "network passes spent on training"),
    ]
    rows = []
    for cell in ordered_cells(run):
        ups = speedups(run, cell)
        entries = {s.key: estimated(s, estimate(run, cell.cell, s.key)) for s in (*latency, BY_KEY["peak_memory_mb"])}
        entries |= {
            "nfe": counted(cell.nfe, cell),
            "kept": _kept(cell),
            "flops": _gigaflops(cell),
            "p90": estimated(latency[-1], ninth_decile(run, cell.cell, "end_to_end_s")),
            "nominal": ratio(ups.nominal),
            "denoise": ratio(ups.denoise),
            "end_to_end": ratio(ups.end_to_end),
            "training_passes": Entry(note="trained elsewhere")
            if cell.kind in ("external", "open")
            else counted(cell.training_passes, cell),
        }
        if _without_network(cell) and not cell.failed:
            entries = {k: replace(e, note="no network") if not e.text else e for k, e in entries.items()}
        rows.append(Row(cell.cell, cell.label, cell.kind, entries))
    high = [Shown(key, "", "", 1, 2, "high", "") for key in ("nominal", "denoise", "end_to_end")]
    timed = (reference and estimate(run, reference.cell, "denoise_s").n) or 0
    fewest = min((n for cell in run.cells if (n := estimate(run, cell.cell, "denoise_s").n)), default=timed)
    fewer = f", {fewest} of other slow cells" if fewest < timed else ""
    legend = (
        f"{RANKS} Brackets: 95 % intervals, order statistics for medians, paired by condition for speed-ups; "
        f"{timed or 'no'} timed clips of the reference{fewer}."
    )
    caption = (
        "Speed. Latencies are medians for one clip; speed-ups are over the reference. A student that has the teacher's "
        "network is timed with the teacher's weights: they do not decide how long a pass takes."
    )
    return _ranked("speed", "Speed", caption, columns, rows, [*latency, *high], legend)


def _legend(run: RunData) -> str:
    return f"{RANKS} Brackets: 95 % intervals, clustered by condition; {units(run)}."


def _too_few(run: RunData) -> str:
    """Says that being as good cannot win, where the run has fewer conditions than that takes; or ''."""
    if run.reference is None or not (known := estimate(run, run.reference.cell, HEADLINE).value):
        return ""
    found = paired(run, run.reference.cell, run.reference.cell, HEADLINE)["condition"].nunique()
    if found >= (needed := conditions_to_win(known)):
        return ""
    return f" With {found} conditions only what is better than the reference can win: being as good takes {needed} to show."


def _column(s: Shown) -> Column:
    return Column(s.key, s.title, s.unit, s.arrow, s.meaning)


def estimated(s: Shown, e: Estimate) -> Entry:
    low, high = (s.text(x) if e.has_interval else "" for x in (e.low, e.high))
    return Entry(s.text(e.value), e.value, e.low, e.high, low, high, e.n or None, e.reason)


def ratio(r: Ratio) -> Entry:
    if r.value is None:
        return Entry(note=r.reason)
    low, high = (times(x)[:-1] if x is not None else "" for x in (r.low, r.high))
    return Entry(times(r.value), r.value, r.low, r.high, low, high, r.n or None, r.reason)


def counted(number: int | None, cell: Cell) -> Entry:
    if number is not None:
        return Entry(f"{number:,}".replace(",", " "), float(number))
    if cell.kind == "open" and not cell.failed:
        return Entry(note="another network than the teacher's")
    return Entry(note="no network" if _without_network(cell) else "not recorded")


def _without_network(cell: Cell) -> bool:
    """Some controls have a student: what is not known of them yet is not known, not absent."""
    return cell.kind == "control" and cell.num_inference_steps is None


def _gigaflops(cell: Cell) -> Entry:
    return Entry(f"{cell.flops / 1e9:.1f}", cell.flops / 1e9) if cell.flops else counted(None, cell)


def _kept(cell: Cell) -> Entry:
    parts = [f"{100 * x:.0f} %" if x is not None else "—" for x in (cell.kept_parameters, cell.kept_blocks)]
    if cell.kept_parameters is None and cell.kept_blocks is None:
        return counted(None, cell)
    return Entry(" / ".join(parts), cell.kept_blocks)


def _ranked(
    name: str, title: str, caption: str, columns: list[Column], rows: list[Row], shown: list[Shown], legend: str
) -> Table:
    """The table with best and second marked per column, ties included; a cell that failed is not ranked."""
    out = ("failed", "blocked", "skipped", "waiting", "running")
    failed = {r.key for r in rows if any(e.note.startswith(out) for e in r.entries.values())}
    for s in shown:
        if s.best is None:
            continue
        values = {r.key: r.entries[s.key].value for r in rows if r.kind in RANKED and r.key not in failed}
        distances = {key: s.distance(value) for key, value in values.items() if value is not None}
        places = sorted(set(distances.values()))[:2]
        if len(distances) < 2:
            continue
        for row in rows:
            if row.key in distances and distances[row.key] in places:
                rank: Rank = 1 if distances[row.key] == places[0] else 2
                row.entries[s.key] = replace(row.entries[s.key], rank=rank)
    return Table(name, title, caption, tuple(columns), tuple(rows), legend)
