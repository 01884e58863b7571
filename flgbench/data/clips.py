"""A folder of real clips, encoded once: latents and conditions in safetensors shards, and a manifest with their hashes.

    OUT/shard-00000.safetensors   latents, text, image, extra.NAME: one row a clip
    OUT/negative.safetensors      what all clips share: the negative caption's embeddings
    OUT/manifest.json             written last: rules, model, versions; every clip with its hash and place; bad clips

A clip's place is decided by the sorted list of files alone, and clips are encoded one by one, so a run that was killed
goes on at the first shard that is missing and ends with the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flgbench.data import videos
from flgbench.data.videos import BadClipError, Shape
from flgbench.errors import UsageError
from flgbench.inputs import clean_prompt
from flgbench.settings import digest
from flgbench.store import sha256, write_json

if TYPE_CHECKING:
    import numpy as np
    import torch

    from flgbench.data.source import ClipSource
    from flgbench.models.base import VideoModel

MANIFEST, NEGATIVE, WORK, SETTINGS = "manifest.json", "negative.safetensors", "work", "settings.json"
SHARED = ("negative_text", "negative_extra.")  # names of a condition's tensors that do not differ from clip to clip
FORMAT = 1
UNKNOWN, NO_CAPTION = "named in the captions, but not in the folder", "no caption"

OnClip = Callable[[str, str | None, bool], None]  # file, why it is bad, and whether it was read just now
Inputs = dict[str, "np.ndarray"]  # what a clip tells besides frames and caption, by `ClipSource.read`
# ((frames, inputs), {file, sha256}), or (None, {file, reason}) for a bad clip
Read = tuple["tuple[np.ndarray, Inputs] | None", dict[str, str]]


@dataclass(frozen=True)
class Source:
    """What is to be encoded: captioned clips by file name, and what is bad before any clip is opened."""

    folder: Path
    captions: Mapping[str, str]  # file name below `folder` -> caption, sorted
    bad: Mapping[str, str]  # file name -> reason

    @property
    def digest(self) -> str:
        return digest([sorted(self.captions.items()), sorted(self.bad.items())])


def find_clips(folder: Path, captions: Mapping[str, str]) -> Source:
    """Every video in `folder`, at any depth, with its caption. Raises UsageError where there is none."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of clips")
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in videos.SUFFIXES and p.is_file())
    names = sorted(f.as_posix() for f in files if not any(part.startswith(".") for part in f.parts))
    if not names:
        raise UsageError(f"{folder}: no videos in it; they end in {', '.join(videos.SUFFIXES)}")
    told = {name: captions[name] for name in names if captions.get(name, "").strip()}
    bad = {name: NO_CAPTION for name in names if name not in told}
    bad |= {name: UNKNOWN for name in sorted(captions) if name not in set(names)}
    return Source(folder, told, bad)


def check_output(out: Path, settings: Mapping[str, Any], source: Source) -> dict[str, Any] | None:
    """The manifest where `out` is finished, None where it is empty or half done.

    Raises UsageError for an `out` that holds anything else, was begun with other settings, or cannot be written.
    """
    wanted = {"settings": dict(settings), "input": source.digest}
    if out.exists() and not out.is_dir():
        raise UsageError(f"-o {out}: is a file; name a folder")
    for file, done in ((out / MANIFEST, True), (out / WORK / SETTINGS, False)):
        if not file.exists():
            continue
        found = json.loads(file.read_text())
        if apart := [k for k, v in settings.items() if found["settings"].get(k) != v]:
            was = found["settings"].get(apart[0])
            raise UsageError(
                f"-o {out}: was made with {apart[0]} {was!r}, not {settings[apart[0]]!r}: choose another folder"
            )
        if found["input"] != source.digest:
            raise UsageError(f"-o {out}: was made from other clips or captions: choose another folder")
        return found if done else None
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"-o {out}: holds something else than an encoded set: choose another folder")
    try:
        (out / WORK).mkdir(parents=True, exist_ok=True)
        write_json(out / WORK / SETTINGS, wanted)
    except OSError as error:
        raise UsageError(f"-o {out}: cannot write there ({error.strerror}): choose another folder") from None
    return None


def encode(
    model: VideoModel,
    shape: Shape,
    source: Source,
    out: Path,
    settings: Mapping[str, Any],
    shard_clips: int,
    workers: int,
    on_clip: OnClip,
    clip_source: ClipSource,
) -> dict[str, Any]:
    """Encode `source` into `out`, which `check_output` has accepted; returns the manifest.

    `settings` go into the manifest as they are. Shard k holds the good ones of the k-th `shard_clips` captioned files. Clips
    are read by `workers` threads ahead of the model. `on_clip` is told of every clip, also of those that were done before.
    `clip_source` reads what the model is told of a clip besides.
    """
    for name, reason in source.bad.items():
        on_clip(name, reason, False)
    names = list(source.captions)
    groups = [names[i : i + shard_clips] for i in range(0, len(names), shard_clips)]
    records = [_finished(out, number) for number in range(len(groups))]
    for record in records:
        for told in (*record["clips"], *record["bad"]) if record else ():
            on_clip(told["file"], told.get("reason"), False)
    left = [name for group, record in zip(groups, records, strict=True) if record is None for name in group]
    with _reading(source.folder, left, partial(_read, shape=shape, clip_source=clip_source), workers) as clips:
        for number, group in enumerate(groups):
            if records[number] is None:
                records[number] = _write_shard(model, source, out, number, group, clips, on_clip)
    done = [record for record in records if record is not None]
    shards = [{k: r[k] for k in ("file", "sha256", "clips")} for r in done if r["clips"]]
    bad = [{"file": name, "reason": reason} for name, reason in source.bad.items()]
    manifest = {
        "format": FORMAT,
        "settings": dict(settings),
        "input": source.digest,
        "rules": {**videos.RULES, **clip_source.rules},
        "negative": {"file": NEGATIVE, "sha256": sha256(out / NEGATIVE)} if shards else None,
        "shards": [{"file": s["file"], "sha256": s["sha256"], "clips": len(s["clips"])} for s in shards],
        "clips": [{**clip, "shard": i, "row": row} for i, s in enumerate(shards) for row, clip in enumerate(s["clips"])],
        "bad": sorted([*bad, *(entry for r in done for entry in r["bad"])], key=lambda entry: entry["file"]),
    }
    write_json(out / MANIFEST, manifest)
    shutil.rmtree(out / WORK)
    return manifest


def _finished(out: Path, number: int) -> dict[str, Any] | None:
    """The record of a shard that an earlier run has finished."""
    file = out / WORK / f"shard-{number:05d}.json"
    if not file.exists():
        return None
    record = json.loads(file.read_text())
    whole = not record["clips"] or ((p := out / record["file"]).exists() and sha256(p) == record["sha256"])
    return record if whole else None


def _write_shard(
    model: VideoModel,
    source: Source,
    out: Path,
    number: int,
    names: Sequence[str],
    clips: Iterator[Read],
    on_clip: OnClip,
) -> dict[str, Any]:
    """Encode the next `names` of `clips` into one shard; its record, in WORK, says that it is whole."""
    import torch

    file = out / f"shard-{number:05d}.safetensors"
    record: dict[str, Any] = {"file": file.name, "sha256": None, "clips": [], "bad": []}
    rows: list[dict[str, torch.Tensor]] = []
    for name in names:
        found, told = next(clips)
        assert told["file"] == name
        if found is None:
            record["bad"].append(told)
        else:
            caption = clean_prompt(source.captions[name])
            rows.append(encode_clip(model, torch.from_numpy(found[0]), caption, found[1]))
            record["clips"].append({"file": name, "caption": caption, "sha256": told["sha256"]})
        on_clip(name, told.get("reason"), True)
    if rows:
        shared = {k: v for k, v in rows[0].items() if k.startswith(SHARED)}
        if not (out / NEGATIVE).exists():
            _save(shared, out / NEGATIVE)
        _save({k: torch.cat([row[k] for row in rows]) for k in rows[0] if k not in shared}, file)
        record["sha256"] = sha256(file)
    write_json(out / WORK / f"shard-{number:05d}.json", record)
    return record


def encode_clip(model: VideoModel, video: torch.Tensor, caption: str, inputs: Inputs) -> dict[str, torch.Tensor]:
    """What is stored of one clip (T, H, W, 3) uint8: 'latents' and the tensors of its condition, each with a batch of 1.

    The condition's image is the first frame.
    """
    import torch

    told = {name: torch.from_numpy(value)[None] for name, value in inputs.items()}
    condition = model.with_inputs(model.condition(video[None, 0], [caption]), told)
    return {"latents": model.encode_video(video[None]), **condition.tensors()}


def _save(tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    unfinished = file.with_name(file.name + ".partial")
    save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, unfinished)
    os.replace(unfinished, file)


@contextmanager
def _reading(
    folder: Path, names: Sequence[str], read: Callable[[Path, str], Read], workers: int
) -> Iterator[Iterator[Read]]:
    """The clips `names` in order, read by threads that are a few clips ahead of whoever takes them."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="clip")

    def in_order() -> Iterator[Read]:
        left, waiting = iter(names), deque[Future[Read]]()
        while True:
            while len(waiting) <= workers and (name := next(left, None)) is not None:
                waiting.append(pool.submit(read, folder, name))
            if not waiting:
                return
            yield waiting.popleft().result()

    try:
        yield in_order()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(folder: Path, name: str, shape: Shape, clip_source: ClipSource) -> Read:
    path = folder / name
    try:
        video = videos.read_clip(path, shape)
        inputs = clip_source.read(path, Fraction(shape.frames, shape.fps))
        return (video, inputs), {"file": name, "sha256": sha256(path)}
    except BadClipError as error:
        return None, {"file": name, "reason": str(error)}


def settings_of(model: str, scale: str, fingerprint: str, shape: Shape, shard_clips: int) -> dict[str, Any]:
    """Everything besides the clips that decides the bytes of an encoded set."""
    from flgbench.environment import package_version

    packages = ("flgbench", "torch", "diffusers", "transformers", "av", "pillow", "scipy")
    versions = {name: package_version(name) for name in packages}
    told = {"model": model, "scale": scale, "fingerprint": fingerprint, **asdict(shape)}
    return told | {"shard_clips": shard_clips, "versions": versions}
