"""The hunyuan family: where its teacher is and which numbers its methods start from."""

from __future__ import annotations

from pathlib import Path

from flgbench.contracts import Family, FamilyPreset
from flgbench.errors import UsageError
from flgbench.models.base import Placement, VideoModel
from flgbench.models.families import WEIGHTS
from flgbench.shipped import HASHES, verify
from flgbench.store import sha256


class HunyuanFamily(Family):
    """HunyuanVideo image-to-video, guidance-distilled; no weights ship: make `tiny` with `flgbench pretrain`."""

    name = "hunyuan"
    scales = ("tiny",)
    recipe = "flgbench.models.tiny.hunyuan_pretrain"
    effort = "hours on two cores"  # of making the tiny weights

    def preset(self, scale: str) -> FamilyPreset:
        return FamilyPreset(
            shift=3.0,
            guidance_scale=2.0,
            num_inference_steps=50,
            clip=(17, 64, 64),
            fps=8,
            blocks=12,
            self_attention_share=0.0,  # text and video share it
            guidance_is_embedded=True,
            beta1=2.0,  # the paper's values for HunyuanVideo
            beta2=0.25,
        )

    def folder(self, scale: str) -> Path:
        if self.checkpoint or self.revision:
            raise UsageError(f"--checkpoint and --revision: family '{self.name}' reads no checkpoints yet, leave them out")
        return WEIGHTS / f"{self.name}-{scale}"

    def fingerprint(self, scale: str) -> str:
        self._verify(scale)
        return sha256(self.folder(scale) / HASHES)

    def load(self, scale: str, placement: Placement | None = None) -> VideoModel:
        from flgbench.models.hunyuan import Hunyuan

        self._verify(scale)
        return Hunyuan.load(self.folder(scale), placement or Placement())

    def _verify(self, scale: str) -> None:
        folder = self.folder(scale)
        if not (folder / HASHES).exists():
            raise UsageError(
                f"no weights in {folder}: none ship for '{self.name}' yet; make them with "
                f"`flgbench pretrain --model {self.name}` ({self.effort})"
            )
        verify(folder)
