"""`flgbench encode`: a folder of real clips, encoded once for training. Input is checked before torch is imported."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer

from flgbench.errors import UsageError
from flgbench.models import DEFAULT_FAMILY
from flgbench.options import AsJson, Checkpoint, Model, Revision, Scale

PLAIN_EVERY = 15.0  # seconds between lines in a log


def encode(
    clips: Annotated[Path, typer.Argument(metavar="CLIPS_DIR", help="Folder of videos; folders in it are searched too.")],
    captions: Annotated[Path, typer.Option(help="CSV with columns file_name and caption, or JSONL with these keys.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; where it is half done, it goes on.")],
    model: Model = DEFAULT_FAMILY,
    scale: Scale = "tiny",
    checkpoint: Checkpoint = None,
    revision: Revision = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that read videos; default: one a core.")] = None,
    shard_clips: Annotated[int, typer.Option(min=1, help="Clips in a shard, the most that a kill undoes.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Encode real clips for training: `flgbench run --data FOLDER`.

    Time: the model's frame rate by nearest timestamp, and its number of frames from the first one on; a shorter clip is bad,
    nothing is padded. Space: turned upright, pixels made square, scaled until the model's size is just covered, cropped
    around the centre. The first frame becomes the image condition. A family that hears is told the sound track from the
    first frame's time on. A bad clip (broken, too short, without a video stream, without a sound where it is heard, without
    a caption, or captioned and not there) is listed with its reason in manifest.json and ends nothing.

    Exit codes: 0 all encoded, 1 some clips are bad, 2 wrong use. Run again after an interruption, it goes on.
    """
    from flgbench.data.captions_file import read_captions
    from flgbench.registry import registry

    registry("families").check(model)
    told_captions = read_captions(captions)
    from flgbench.data import clips as work

    source = work.find_clips(clips, told_captions)
    family = registry("families").get(model)(checkpoint, revision)
    if scale not in family.scales:
        raise UsageError(f"--scale {scale}: family '{model}' has {', '.join(family.scales)}")
    from flgbench import environment
    from flgbench.data.videos import Shape

    preset = family.preset(scale)
    frames, height, width = preset.clip
    shape = Shape(frames, height, width, preset.fps)
    settings = work.settings_of(model, scale, family.fingerprint(scale), shape, shard_clips)
    manifest = work.check_output(output, settings, source)
    if manifest is None:
        teacher, threads = family.load(scale), workers or environment.cores()
        with Throughput(len(source.captions) + len(source.bad), shape.frames) as told:
            manifest = work.encode(teacher, shape, source, output, settings, shard_clips, threads, told, family.clips)
        print(told.summary(), file=sys.stderr)
    bad = manifest["bad"]
    if as_json:
        print(json.dumps({"folder": str(output), "clips": len(manifest["clips"]), "bad": bad}))
    else:
        for entry in bad:
            print(f"bad: {entry['file']}: {entry['reason']}")
        print(f"{len(manifest['clips'])} clips in {len(manifest['shards'])} shards, {len(bad)} bad: {output}")
    if bad:
        raise typer.Exit(1)


class Throughput:
    """Counts clips as they are encoded: a bar on a terminal, a line now and then otherwise."""

    def __init__(self, total: int, frames: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.total, self.frames = total, frames
        self.seen, self.made = 0, 0
        self.terminal = sys.stderr.isatty()
        columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True)
        self.task = self.bars.add_task("clips", total=total, note="")

    def __enter__(self) -> Throughput:
        self.began = self.said = time.monotonic()
        if self.terminal:
            self.bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def __call__(self, file: str, bad: str | None, new: bool) -> None:
        self.seen += 1
        self.made += new and bad is None
        if self.terminal:
            self.bars.update(self.task, completed=self.seen, note=self.rate())
        elif time.monotonic() - self.said > PLAIN_EVERY:
            self.said = time.monotonic()
            print(f"{self.seen}/{self.total} clips, {self.rate()}", file=sys.stderr, flush=True)

    def rate(self) -> str:
        """'3.7 clips/s, 63 frames/s' of what was encoded just now."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        return f"{self.made / seconds:.3g} clips/s, {self.made * self.frames / seconds:.3g} frames/s"

    def summary(self) -> str:
        return f"{self.made} clips encoded in {time.monotonic() - self.began:.1f} s: {self.rate()}"


EXAMPLES: dict[Callable[..., None], str] = {
    encode: "Examples:  flgbench encode clips --captions captions.csv -o encoded  |  "
    "flgbench encode clips --captions captions.jsonl --scale 14b --workers 16 -o encoded && "
    "flgbench run --scale 14b --data encoded",
}
