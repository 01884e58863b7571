"""`flgbench latency`: timing only, of any scale, with its weights or with random ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from flgbench.errors import UsageError
from flgbench.models import DEFAULT_FAMILY
from flgbench.options import AsJson, Checkpoint, Model, Revision, Scale


class Weights(StrEnum):
    random = "random"
    teacher = "teacher"


class Device(StrEnum):
    cuda = "cuda"
    cpu = "cpu"


class Dtype(StrEnum):
    bf16 = "bf16"
    fp32 = "fp32"


class Attention(StrEnum):
    auto = "auto"
    cudnn = "cudnn"
    flash = "flash"
    efficient = "efficient"
    math = "math"


DEFAULT = "euler,all"


def latency(
    methods: Annotated[str, typer.Option("--methods", help="Methods, baselines or 'all', separated by commas.")] = DEFAULT,
    model: Model = DEFAULT_FAMILY,
    scale: Scale = "tiny",
    weights: Annotated[Weights | None, typer.Option(help="Default: random; at tiny and of a --checkpoint its own.")] = None,
    checkpoint: Checkpoint = None,
    revision: Revision = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="METHOD.SETTING=VALUE, or =A,B,C for a row of each; may be repeated.")
    ] = None,
    lose_first: Annotated[
        str | None, typer.Option("--lose-first", help="Kind of block that goes first, where there are several kinds.")
    ] = None,
    passes_only: Annotated[
        str, typer.Option("--passes-only", help="Of --methods those of which no whole clips are made.")
    ] = "",
    pairs: Annotated[int, typer.Option(min=1, help="Timed conditions; 1 gives no intervals.")] = 20,
    passes: Annotated[int, typer.Option(min=1, help="Single passes of each network before every condition.")] = 3,
    encode_first: Annotated[
        bool,
        typer.Option("--encode-first", help="Encode all conditions, then free the encoders, before the denoiser is made."),
    ] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Also time every row with torch.compile.")] = False,
    device: Annotated[Device | None, typer.Option(help="Default: the GPU, if there is one.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Default: bf16 on a GPU, fp32 on a CPU.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Of a clip; default: the scale's own.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="In pixels; default: the scale's own.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="In pixels; default: the scale's own.")] = None,
    attention: Annotated[Attention, typer.Option(help="Back end; auto: the device's fastest.")] = Attention.auto,
    threads: Annotated[int | None, typer.Option(min=1, help="Of a CPU; default: one a core.")] = None,
    allow_fallback: Annotated[
        bool, typer.Option("--allow-fallback", help="Accept a slower back end where the asked one cannot run.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for latency.json, the table and the figure.")] = Path(
        "flgbench-latency"
    ),
    as_json: AsJson = False,
) -> None:
    """Time methods at any scale, without training: passes, clips, memory, energy, and how much of the peak is reached.

    A method's student is built in the shape that its settings give it. Its time depends neither on the values of weights
    nor on which of the blocks are gone, so random weights will do, and the full size needs no checkpoint. Where blocks are
    of several kinds it depends on how many of each are gone, which a trained ranking decides: --lose-first takes one.
    """
    from flgbench import environment

    cores = environment.cores()  # asked here, because importing torch can undo a limit set by taskset
    names = _names(methods, "--methods")
    only = _names(passes_only, "--passes-only")
    if stray := [name for name in only if name not in names]:
        raise UsageError(f"--passes-only {stray[0]}: not among --methods {methods}")
    from flgbench.registry import registry
    from flgbench.runs import check_writable
    from flgbench.settings import build_settings, parse_assignments
    from flgbench.sweeps import of_assignments

    registry("families").check(model)
    if checkpoint and weights == Weights.random:
        raise UsageError("--checkpoint names weights: leave out --weights random")
    sweeps, plain = of_assignments(assignments or [])
    own, variants = parse_assignments(plain), [variant for sweep in sweeps for variant in sweep.variants()]
    if stray := [owner for owner in (*own, *(v.method for v in variants)) if owner not in names]:
        raise UsageError(f"--set {stray[0]}.…: '{stray[0]}' is not among --methods {methods}")
    check_writable(out)

    import torch

    from flgbench import latency as work
    from flgbench.latency_document import measure
    from flgbench.models import attention_backend

    device = device or (Device.cuda if torch.cuda.is_available() else Device.cpu)
    if device == Device.cuda and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU here; `flgbench doctor` shows what it sees")
    values = {
        "model": model,
        "scale": scale,
        "weights": weights or (Weights.teacher if checkpoint or scale == "tiny" else Weights.random),
        "checkpoint": checkpoint,
        "revision": revision,
        "names": names,
        "method_settings": own,
        "variants": variants,
        "lose_first": lose_first,
        "passes_only": (*only, *(v.name for v in variants if v.method in only)),
        "pairs": pairs,
        "passes": passes,
        "encode_first": encode_first,
        "compiled": compiled,
        "device": device,
        "dtype": dtype or (Dtype.bf16 if device == Device.cuda else Dtype.fp32),
        "attention": attention,
        "allow_fallback": allow_fallback,
        "threads": threads or cores,
    }
    settings = build_settings(work.LatencySettings, values, "latency")
    family, preset = work.find_family(settings)
    clip = (frames or preset.clip[0], height or preset.clip[1], width or preset.clip[2])
    if clip != preset.clip and settings.weights == "teacher":
        raise UsageError(f"--frames, --height and --width need --weights random: these weights are for {preset.clip}")
    cells = work.find_cells(settings, preset)
    order = attention_backend.resolve(settings.attention, torch.device(settings.device), work.DTYPES[settings.dtype])
    expected = work.estimate(settings, cells, family, clip)
    _say(f"{settings.scale} ({settings.weights} weights, {settings.dtype}), {work.size_text(clip)}: {expected.text()}")
    try:
        document = measure(settings, cells, family, work.builder(settings, family, clip), clip, order, _say)
    except torch.OutOfMemoryError:
        raise UsageError(
            f"out of memory, expected were {expected.text()}: give smaller --frames, --height, --width, fewer --methods "
            f"or a larger device"
        ) from None
    document["estimate"] = {"seconds": expected.seconds, "bytes": expected.bytes}
    _finish(document, out, as_json)


def _names(text: str, option: str) -> tuple[str, ...]:
    """Names of methods and baselines; 'all' is every method. Raises UsageError for one that is neither or given twice."""
    from flgbench.registry import did_you_mean, registry

    known = {*registry("methods").names(), *registry("baselines").names()}
    groups = registry("methods").groups()
    names = tuple(chain.from_iterable(groups.get(name, (name,)) for part in text.split(",") if (name := part.strip())))
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {name}: no such method or baseline{did_you_mean(name, known)}")
    if len(set(names)) != len(names):
        raise UsageError(f"{option} {text}: a name is given twice")
    return names


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _finish(document: dict[str, Any], out: Path, as_json: bool) -> None:
    from flgbench.store import write_json
    from reports import latency_figure, latency_report

    write_json(out / "latency.json", document)
    paths = [out / "latency.json", *latency_figure.build(document, out)]
    if as_json:
        summary = [row.record() for row in latency_report.summaries(document)]
        print(json.dumps({"rows": summary, "machine": document["machine"], "files": [str(path) for path in paths]}))
        return
    print("\n".join(latency_report.lines(document)))
    print(f"samples, table and figure: {out}")


EXAMPLES: dict[Callable[..., None], str] = {
    latency: "Examples:  flgbench latency --pairs 5  |  flgbench latency --scale 14b --weights random --pairs 1  |  "
    "flgbench latency --scale 14b --weights random --methods euler,fastlightgen,icmd --passes-only icmd --pairs 2  |  "
    "flgbench latency --model hunyuan --scale 13b --methods euler,fastlightgen --set fastlightgen.keep=1,0.7,0.5",
}
