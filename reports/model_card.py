"""The model card of an exported student: how to use it, what it is, what was measured, whom to cite. Markdown.

Everything that a person or another distribution named is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from flgbench import __version__
from flgbench.errors import UsageError
from flgbench.models.base import StockCall, VideoModel
from flgbench.registry import registry
from flgbench.sampling import SamplerSettings
from flgbench.students import Student
from reports.aggregates import estimate, speedups
from reports.catalogue import BY_KEY, HEADLINE, seconds
from reports.data import Cell, RunData, RunFolderError, load_run
from reports.tables import md
from reports.verdicts import verdict

QUALITY = (
    HEADLINE, "presence", "colour", "shape", "direction", "second_present", "motion_ratio", "first_frame_psnr",
    "turn_diversity", "mmd",
)  # fmt: skip
LATENCY = ("text_s", "denoise_s", "decode_s", "end_to_end_s")
TINY = (
    " It knows the procedural clips that it was trained on, a coloured shape that moves over a plain background, and "
    "nothing else."
)
SOLVERS = {
    "euler": "Euler steps",
    "renoise": "estimates of the clean clip, each renoised to the next time",
    "unipc": "UniPC steps of order 2",
}


def model_card(student: Student, model: VideoModel) -> str:
    """The card's whole text. Raises UsageError when the run's results cannot be read."""
    try:
        run = load_run(student.record.run)
    except RunFolderError as error:
        raise UsageError(str(error)) from None
    cell, call = run.cell(student.record.cell), model.stock_call(student.sampler)
    parts = [
        front_matter(student, cell),
        introduction(student, cell),
        f"## Use\n\n```python\n{example(student, model, call)}```\n\n{usage_notes(student, call)}",
        f"## What it is\n\n{description(student, model, run, cell)}",
        f"## What was measured\n\n{measurements(run, cell)}",
        f"## Settings\n\n{settings_table(cell)}",
        f"## Licence and citation\n\n{citation(cell)}",
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(student: Student, cell: Cell) -> str:
    """YAML for model hubs; every value is quoted as JSON, which YAML reads."""
    values = {
        "license": "apache-2.0",
        "library_name": "diffusers",
        "pipeline_tag": "image-to-video",
        "base_model": f"{student.record.model}-{student.record.scale}",
        "tags": ["flgbench", "image-to-video", cell.cell],
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items()), "---"])


def introduction(student: Student, cell: Cell) -> str:
    """Title and what is different from the teacher, in two sentences."""
    teacher = md(f"{student.record.model}-{student.record.scale}")
    what = "A student of" if student.record.transformer is not None else "The network of"
    frames, height, width = student.clip
    return (
        f"# {md(cell.label)}, {teacher}\n\n"
        f"{what} the teacher {teacher}, an image+text-to-video diffusion transformer for clips of {frames} frames of "
        f"{height} × {width} pixels. What changed: {md(cell.changes)}. Made and measured by flgbench {__version__}."
        f"{TINY if student.record.scale == 'tiny' else ''}"
    )


def example(student: Student, model: VideoModel, call: StockCall) -> str:
    """Python that makes a clip from `first.png` with the stock pipeline, in this folder."""
    _, height, width = student.clip
    sampler, pipeline = student.sampler, type(model.stock_pipeline(None)).__name__
    cache, setup = "", list(call.setup)
    if sampler.cache_threshold is not None:
        cache = "FirstBlockCacheConfig, "
        setup.append(f"pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold={sampler.cache_threshold!r}))")
    before = "".join(f"{line}\n" for line in setup)
    arguments = "".join(f"    {name}={value!r},\n" for name, value in call.arguments.items())
    return f"""import torch
from diffusers import {cache}{pipeline}
from diffusers.utils import export_to_video
from PIL import Image, ImageOps

pipe = {pipeline}.from_pretrained(".")
{before}image = ImageOps.exif_transpose(Image.open("first.png")).convert("RGB")
image = ImageOps.fit(image, ({width}, {height}), Image.Resampling.LANCZOS)
torch.manual_seed(0)
video = pipe(
    image,
    "a large red circle moves slowly to the right over a plain background",
{arguments}).frames[0]
export_to_video(video, "out.mp4", fps={student.fps})
"""


def usage_notes(student: Student, call: StockCall) -> str:
    """What one has to know before changing the example."""
    sampler, steps = student.sampler, student.sampler.num_inference_steps
    times = (
        f"The pipeline makes {steps} even steps, and the scheduler shifts them by {sampler.shift:g}."
        if call.even_times
        else f"The scheduler is made for {steps} steps: with its `shift` and `shift_terminal` the stock spacing gives the "
        f"times of {steps} even steps shifted by {sampler.shift:g}. Another number of steps needs another scheduler."
    )
    notes = [times, "`max_sequence_length` is that of the training."]
    if call.setup:
        notes.append("The lines between `pipe` and `image` make the pipeline decode clips as this model's were.")
    if sampler.kind == "renoise":
        notes.append(
            "The seed is set globally because the pipeline does not hand its `generator` to the scheduler, which renoises."
        )
    if sampler.kind == "unipc" and not call.even_times:
        notes.append(
            "The stock scheduler cuts UniPC's times to whole thousandths, so clips differ from those of `flgbench sample` "
            "by a few of 256 grey levels."
        )
    else:
        notes.append("`flgbench sample --seed 0` makes the same clip, to the rounding of its file.")
    return "\n".join(f"- {note}" for note in notes)


def description(student: Student, model: VideoModel, run: RunData, cell: Cell) -> str:
    """Teacher, method, network, sampler and training, one row each."""
    record, sampler = student.record, student.sampler
    kept = model.kept_blocks
    share = f" ({cell.kept_parameters:.1%} of the teacher's)" if cell.kept_parameters else ""
    trained = "no training of its own"
    if cell.training_passes:
        trained = f"{cell.training_passes:,} network passes, {seconds(cell.training_seconds or 0)}"
    rows = {
        "teacher": f"{record.model}-{record.scale}, {record.teacher_key}",
        "method": f"{cell.label} ({cell.cell})",
        "what changes": cell.changes,
        "parameters": f"{model.n_parameters:,}{share}",
        "kept blocks": f"{len(kept)} of {model.n_teacher_blocks}: {', '.join(map(str, kept))}",
        "steps": f"{sampler.num_inference_steps}, {SOLVERS[sampler.kind]}",
        "network passes a clip": sampler.nfe,
        "guidance": _guidance(sampler),
        "shift": f"{sampler.shift:g}",
        "cache": "none" if sampler.cache_threshold is None else f"first block, threshold {sampler.cache_threshold:g}",
        "training": trained,
        "run": run.run.name,
        "made with": ", ".join(
            f"{name} {cell.card.get(name, '?')}" for name in ("flgbench", "commit", "torch", "diffusers")
        ),
    }
    return _table(("", ""), [(name, md(str(value))) for name, value in rows.items()])


def _guidance(sampler: SamplerSettings) -> str:
    parts = [f"{sampler.guidance_scale:g}"] if sampler.guidance_scale != 1 else []
    parts += [f"embedded scale {sampler.embedded_guidance:g}"] if sampler.embedded_guidance is not None else []
    return ", ".join(parts) or "none"


def measurements(run: RunData, cell: Cell) -> str:
    """Quality and speed with their intervals beside the teacher's, and on what they rest."""
    reference = run.reference
    cells = [cell] if reference is None or reference.cell == cell.cell else [cell, reference]
    rows = []
    for key in (*QUALITY, *LATENCY):
        shown = BY_KEY[key]
        unit = f" ({shown.unit})" if shown.unit else ""
        rows.append((md(f"{shown.title}{unit} {shown.arrow}".strip()), *(_told(run, c, key) for c in cells)))
    ups = speedups(run, cell)
    for name, ratio in (("nominal", ups.nominal), ("denoise", ups.denoise), ("end to end", ups.end_to_end)):
        shown_ratio = ratio.text() + (f": {ratio.reason}" if ratio.value is None and ratio.reason else "")
        rows.append((f"speed-up, {name}", md(shown_ratio), *["1" for _ in cells[1:]]))
    facts = run.run.environment
    machine = f"{facts.get('cpu', 'unknown')}, GPU {facts.get('gpu', 'unknown')}, {facts.get('threads', '?')} threads"
    judged = verdict(run, cell)
    lines = [
        _table(("", md(cell.label), *(md(c.label) for c in cells[1:])), rows),
        f"Brackets: 95 % intervals, clustered by condition, of {cell.card.get('clips', '?')} clips of "
        f"{cell.card.get('conditions', '?')} procedural conditions whose truth is known. These are not VBench's measures. "
        f"Speed: {md(machine)}, one clip at a time, interleaved with the teacher.",
        f"Verdict: {md(judged.answer)}. {md(judged.why)}",
    ]
    return "\n\n".join(lines)


def settings_table(cell: Cell) -> str:
    """Every setting; what no source states is marked."""
    told, notes = dict(_flat(cell.settings)), {}
    for entry in cell.inferred:
        # A method whose settings are those of its only stage has them without the stage's name.
        bare = entry.setting.partition(".")[2]
        name = bare if entry.setting not in told and told.get(bare, ...) == entry.value else entry.setting
        told.setdefault(name, entry.value)
        notes[name] = entry.note
    rows = [(md(name), md(str(value)), md(notes.get(name, ""))) for name, value in told.items()]
    return _table(("setting", "value", "note"), rows)


def citation(cell: Cell) -> str:
    """Licence, and BibTeX of the method's papers and of flgbench."""
    papers = registry("methods").get(cell.method).papers if cell.method in registry("methods").names() else ()
    entries = [
        f"@misc{{arxiv{paper.replace('.', '_')},\n  eprint = {{{paper}}},\n  archivePrefix = {{arXiv}},\n"
        f"  url = {{https://arxiv.org/abs/{paper}}}\n}}"
        for paper in papers
    ]
    entries.append(
        f"@software{{flgbench,\n  title = {{flgbench: a benchmark of accelerated image+text-to-video diffusion "
        f"transformers}},\n  version = {{{__version__}}}\n}}"
    )
    bibtex = "\n".join(entries)
    return f"Apache License 2.0, as flgbench and its teachers.\n\n```bibtex\n{bibtex}\n```"


def _told(run: RunData, cell: Cell, key: str) -> str:
    shown, found = BY_KEY[key], estimate(run, cell.cell, key)
    if found.value is None:
        return md(f"not measured: {found.reason}")
    interval = f" [{shown.text(found.low)}, {shown.text(found.high)}]" if found.has_interval else ""
    return md(shown.text(found.value) + interval)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, tuple(":--" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
