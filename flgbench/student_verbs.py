"""`flgbench sample` and `flgbench export`: use a trained student. Input is checked before torch is imported."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flgbench.errors import UsageError
from flgbench.options import AsJson, Out

if TYPE_CHECKING:
    import numpy as np

    from flgbench.students import StudentRecord

QUIET = 0.05  # of the loudest procedural sound
STUDENT = "RUN/CELL: a run's name or folder, or 'latest', and a method or a sampler of the teacher."


def sample(
    student: Annotated[str, typer.Option(help=STUDENT)],
    image: Annotated[Path, typer.Option(help="First frame, PNG or JPEG; or a folder of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File .mp4; for a folder of images a folder.")],
    prompt: Annotated[str | None, typer.Option(help="What the clip shows.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="CSV with columns image and prompt, for a folder of images.")] = None,
    audio: Annotated[
        Path | None,
        typer.Option(help="Sound that the clip follows, for a family that hears; any file that PyAV reads."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Noise: the same seed makes the same clip.")] = 0,
    out: Out = Path("flgbench-out"),
    as_json: AsJson = False,
) -> None:
    """Make clips with a student. An image is scaled to cover the model's size and cropped around its centre.

    A family that hears follows --audio, which the clip then carries; without it, silence.
    """
    from flgbench import inputs
    from flgbench.students import find_student

    if not image.exists():
        raise UsageError(f"--image {image}: no such file or folder")
    record = find_student(student, out)
    if image.is_dir():
        if prompts is None or prompt is not None:
            raise UsageError(
                f"--image {image} is a folder: give --prompts FILE.csv with columns image and prompt, no --prompt"
            )
        requests = inputs.many(image, prompts, output)
    else:
        if prompt is None or prompts is not None:
            raise UsageError(f"--image {image} is one image: give --prompt TEXT, no --prompts")
        requests = inputs.one(image, prompt, output)
    sound = None if audio is None else _sound(record, audio)
    from flgbench.students import load
    from flgbench.video import write_mp4

    loaded = load(record)
    with _progress(len(requests), loaded.sampler.num_inference_steps) as (on_step, say):
        for request in requests:
            for remark in loaded.model.remarks(inputs.clean_prompt(request.prompt)):
                say(f"{request.image.name}: {remark}")
            clip = loaded.sample(request.image, request.prompt, seed, on_step, sound)
            write_mp4(request.output, clip, loaded.fps, sound)
            say(f"made {request.output}")
    if as_json:
        print(json.dumps({"student": f"{record.run.name}/{record.cell}", "files": [str(r.output) for r in requests]}))
    else:
        print(f"{len(requests)} {'clip' if len(requests) == 1 else 'clips'} of {record.run.name}/{record.cell}: {output}")


def _sound(record: StudentRecord, audio: Path) -> np.ndarray:
    """The sound in `audio`, as long as a clip of the student. Raises UsageError for what cannot be read or heard."""
    from flgbench.data.sound import RATE
    from flgbench.data.sound_file import level, read_sound
    from flgbench.registry import family_of, registry

    family = family_of(record.place)
    if not family.clips.sounding:
        hearing = [name for name in registry("families").names() if registry("families").get(name).clips.sounding]
        raise UsageError(f"--audio: family '{record.model}' hears nothing, {', '.join(hearing)} does: leave it out")
    preset = family.preset(record.scale)
    wave = read_sound(audio, round(preset.clip[0] * RATE / preset.fps))
    if level(wave) < QUIET:
        print(f"{audio.name}: is nearly silent in the length of the clip: nothing to follow", file=sys.stderr)
    return wave


def export(
    student: Annotated[str, typer.Argument(help=STUDENT)],
    folder: Annotated[Path, typer.Argument(help="New folder.")],
    out: Out = Path("flgbench-out"),
) -> None:
    """Write a student as a diffusers folder with a model card; the family's stock pipeline loads it."""
    from flgbench.export import check_exportable
    from flgbench.export import export as write
    from flgbench.students import find_student

    record = find_student(student, out)
    check_exportable(record, folder)
    write(record, folder)
    print(f"{record.run.name}/{record.cell}: {folder}, see its README.md")


@contextmanager
def _progress(clips: int, steps: int) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """What to call after every step and with every message: a bar on a terminal, lines on standard error otherwise."""
    if not sys.stderr.isatty():
        yield lambda: None, lambda text: print(text, file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(f"{clips} clips" if clips > 1 else "clip", total=clips * steps)
        yield lambda: bars.advance(task), lambda text: bars.console.print(text, markup=False, highlight=False)


EXAMPLES: dict[Callable[..., None], str] = {
    sample: 'Example:  flgbench sample --student latest/fastlightgen --image first.png --prompt "a red circle" -o out.mp4',
    export: "Example:  flgbench export latest/fastlightgen my-student",
}
