"""Write the clips of one cell of a run as VBench reads them: images/NAME.png, videos/NAME-SAMPLE.mp4, manifest.json."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.data.source import PLAIN
from flgbench.errors import UsageError
from flgbench.registry import family_of
from flgbench.steps.loading import CAPTIONS, evaluation_factors, load_suite
from flgbench.store import Store, sha256, write_json
from flgbench.video import CODEC, write_mp4


def export(run: Path, cell: str, out: Path, fps: int) -> int:
    """Export the clips of `cell` in the run folder `run` into the new folder `out`; returns their number.

    The folder appears whole or not at all. Raises UsageError for an unknown cell, clips that are not there yet, or an
    `out` that exists or cannot be made.
    """
    if out.exists():
        raise UsageError(f"{out} exists: name a new folder")
    store, key = Store(run.parent.parent / "store"), sample_key(run, cell)
    if not store.is_done(key):
        raise UsageError(f"cell '{cell}' of {run.name} has no clips yet: let `flgbench run` finish")
    videos = load_file(store.path(key) / "videos.safetensors")["video"].numpy()
    identities = json.loads((store.path(key) / "identities.json").read_text())
    first, captions, note = _conditions(run, store, key, max(c for c, _ in identities) + 1)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror}): choose another folder") from None
    try:
        (work / "videos").mkdir()
        (work / "images").mkdir()
        entries = []
        for video, (condition, sample) in zip(videos, identities, strict=True):
            name = f"condition{condition:04d}"
            image, clip = work / "images" / f"{name}.png", work / "videos" / f"{name}-{sample}.mp4"
            if not image.exists():
                Image.fromarray(first[condition]).save(image)
            write_mp4(clip, video, fps)
            entries.append(_entry(work, image, clip, captions[condition], condition, sample))
        told: dict[str, Any] = {"run": run.name, "cell": cell, "artifact": key, "fps": fps, "encoding": CODEC}
        write_json(work / "manifest.json", told | {"note": note, "videos": entries})
        work.chmod(0o755)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return len(videos)


def sample_key(run: Path, cell: str) -> str:
    """The artifact with the clips of `cell`."""
    file = run / "steps.json"
    if not file.exists():
        raise UsageError(f"run {run.name} has no results yet: let `flgbench run` finish, or see `flgbench status`")
    steps = [s for s in json.loads(file.read_text()) if s["kind"] == "sample"]
    found = [s["key"] for s in steps if cell in s["cells"]]
    if not found:
        known = ", ".join(sorted({c for s in steps for c in s["cells"]}))
        raise UsageError(f"no cell '{cell}' in run {run.name}. Cells: {known}")
    return found[0]


def _conditions(run: Path, store: Store, key: str, count: int) -> tuple[np.ndarray, list[str], str]:
    """First frames (N, H, W, 3), captions and what they are, of the first `count` conditions of the artifact `key`."""
    plan = run / "plan.json"
    record = json.loads(plan.read_text()) if plan.exists() else {}
    steps = record.get("steps", [])
    data = next((s["inputs"].get("data") for s in steps if s["key"] == key), None)
    if data and (store.path(data) / CAPTIONS).exists():
        told = load_suite(store.path(data))
        return told.first_frames.numpy(), told.captions, "made from a suite of images and prompts"
    clips = family_of(record["settings"]).clips if "settings" in record else PLAIN
    factors = evaluation_factors(count, clips=clips)
    return shapes.render(factors)[:, 0].numpy(), captions_of(factors), "procedural clips, not VBench's images"


def _entry(root: Path, image: Path, clip: Path, caption: str, condition: int, sample: int) -> dict[str, Any]:
    return {
        "video": str(clip.relative_to(root)),
        "video_sha256": sha256(clip),
        "image": str(image.relative_to(root)),
        "image_sha256": sha256(image),
        "caption": caption,
        "condition": condition,
        "sample": sample,
    }
