"""The families the package knows: where their teachers are and which numbers their methods start from."""

from __future__ import annotations

import json
from pathlib import Path

from flgbench import costs
from flgbench.contracts import Family, FamilyPreset
from flgbench.costs import Network
from flgbench.models.base import VideoModel
from flgbench.models.wan_presets import CHECKPOINTS
from flgbench.shipped import HASHES, verify
from flgbench.store import sha256

WEIGHTS = Path(__file__).parent / "weights"


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

    def network(self, scale: str) -> Network:
        if scale in CHECKPOINTS:
            return costs.wan_checkpoint(CHECKPOINTS[scale])
        folder = self.folder(scale)
        own = json.loads((folder / "flgbench.json").read_text())
        config = json.loads((folder / "transformer" / "config.json").read_text())
        return costs.wan(config, own["clip_shape"], (4, 8), own["text_length"])

    def fingerprint(self, scale: str) -> str:
        verify(self.folder(scale))
        return sha256(self.folder(scale) / HASHES)

    def load(self, scale: str) -> VideoModel:
        from flgbench.models.wanx import WanX

        verify(self.folder(scale))
        return WanX.load(self.folder(scale))
