"""The families the package knows: where their teachers are and which numbers their methods start from."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from flgbench.contracts import Family, FamilyPreset
from flgbench.errors import UsageError
from flgbench.models.base import VideoModel
from flgbench.store import sha256

WEIGHTS = Path(__file__).parent / "weights"
HASHES = "sha256.json"


class WanXFamily(Family):
    """Wan image-to-video. `tiny` ships with the package; its 17x64x64 clips are procedural."""

    name = "wanx"
    scales = ("tiny",)

    def preset(self, scale: str) -> FamilyPreset:
        return FamilyPreset(
            shift=3.0,
            guidance_scale=2.0,
            num_inference_steps=50,
            clip=(17, 64, 64),
            fps=8,
            blocks=10,
            self_attention_share=0.236,
        )

    def folder(self, scale: str) -> Path:
        return WEIGHTS / f"{self.name}-{scale}"

    def fingerprint(self, scale: str) -> str:
        verify(self.folder(scale))
        return sha256(self.folder(scale) / HASHES)

    def load(self, scale: str) -> VideoModel:
        from flgbench.models.wanx import WanX

        verify(self.folder(scale))
        return WanX.load(self.folder(scale))


@lru_cache
def verify(folder: Path) -> None:
    """Raise UsageError unless every file of `folder` has the hash recorded beside it."""
    if not (folder / HASHES).exists():
        raise UsageError(f"no weights in {folder}: reinstall the package, or make them with `flgbench pretrain`")
    for name, expected in json.loads((folder / HASHES).read_text()).items():
        path = folder / name
        found = sha256(path) if path.exists() else "no file"
        if found != expected:
            raise UsageError(
                f"weights {path}: sha256 is {found[:12]}, expected {expected[:12]}: reinstall the package, or make "
                f"them again with `flgbench pretrain`"
            )


def write_hashes(folder: Path) -> None:
    """Record the hash of every file under `folder`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != HASHES)
    hashes = {str(p.relative_to(folder)): sha256(p) for p in files}
    (folder / HASHES).write_text(json.dumps(hashes, indent=1) + "\n")
