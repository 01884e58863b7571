"""The families the package knows: where their teachers are and which numbers their methods start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from flgbench.contracts import Around, Family, FamilyPreset
from flgbench.models.base import VideoModel
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

    def fingerprint(self, scale: str) -> str:
        verify(self.folder(scale))
        return sha256(self.folder(scale) / HASHES)

    def load(self, scale: str) -> VideoModel:
        from flgbench.models.wanx import WanX

        verify(self.folder(scale))
        return WanX.load(self.folder(scale))

    def untrained(self, scale: str, clip: tuple[int, int, int], device: str, dtype: torch.dtype) -> VideoModel:
        from flgbench.models import wan_random

        return wan_random.build(scale, clip, device, dtype)

    def pass_flops(self, model: VideoModel) -> Mapping[str, int]:
        from flgbench.models import wan_random

        return asdict(wan_random.pass_flops(model))

    def around(self, model: VideoModel) -> Around:
        from flgbench.models import wan_random

        return Around(wan_random.around_flops(model), wan_random.activation_bytes(model))
