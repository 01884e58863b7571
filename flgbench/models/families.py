"""The families the package knows: where their teachers are and which numbers their methods start from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from flgbench import costs
from flgbench.contracts import Around, Family, FamilyPreset
from flgbench.costs import Network
from flgbench.errors import UsageError
from flgbench.models.base import Placement, VideoModel
from flgbench.models.wan_checkpoint import Checkpoint, ClipSettings, locate
from flgbench.models.wan_presets import CHECKPOINTS, WanCheckpoint, denoiser_size
from flgbench.shipped import HASHES, verify
from flgbench.store import sha256

WEIGHTS = Path(__file__).parent / "weights"
TINY = "tiny"


class WanXFamily(Family):
    """Wan image-to-video. `tiny` ships with the package, its 17x64x64 clips are procedural; the others are checkpoints."""

    name = "wanx"
    scales = (TINY, *CHECKPOINTS)

    def preset(self, scale: str) -> FamilyPreset:
        if scale == TINY:
            self._refuse_checkpoint()
            return FamilyPreset(
                shift=3.0,
                guidance_scale=2.0,
                num_inference_steps=50,
                clip=(17, 64, 64),
                fps=8,
                blocks=10,
                self_attention_share=0.236,
            )
        facts = self._facts(scale)
        size, blocks = denoiser_size(facts.transformer), facts.transformer["num_layers"]
        return FamilyPreset(
            shift=facts.shift,
            guidance_scale=facts.guidance_scale,
            num_inference_steps=facts.num_inference_steps,
            clip=facts.clip,
            fps=facts.fps,
            blocks=blocks,
            self_attention_share=blocks * size.self_attention / size.total,
        )

    def folder(self, scale: str) -> Path:
        if scale == TINY:
            self._refuse_checkpoint()
            return WEIGHTS / f"{self.name}-{scale}"
        return locate(scale, CHECKPOINTS[scale].repository, self.checkpoint, self.revision)

    def network(self, scale: str) -> Network:
        if scale != TINY:
            return costs.wan_checkpoint(self._facts(scale))
        folder = self.folder(scale)
        own = json.loads((folder / "flgbench.json").read_text())
        config = json.loads((folder / "transformer" / "config.json").read_text())
        return costs.wan(config, own["clip_shape"], (4, 8), own["text_length"])

    def fingerprint(self, scale: str) -> str:
        if scale == TINY:
            verify(self.folder(scale))
            return sha256(self.folder(scale) / HASHES)
        return self._checked(scale).fingerprint()

    def load(self, scale: str, placement: Placement | None = None) -> VideoModel:
        from flgbench.models.wanx import WanX

        if scale == TINY:
            verify(self.folder(scale))
            return WanX.load(self.folder(scale), placement=placement or Placement())
        found, facts = self._checked(scale), self._facts(scale)
        clips = ClipSettings(facts.clip, facts.text_length, facts.negative_caption)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return WanX.load(found.folder, clips, placement or Placement(device, torch.bfloat16))

    def untrained(self, scale: str, clip: tuple[int, int, int], device: str, dtype: torch.dtype) -> VideoModel:
        from flgbench.models import wan_random

        return wan_random.build(scale, clip, device, dtype)

    def pass_flops(self, model: VideoModel) -> Mapping[str, int]:
        from flgbench.models import wan_random

        return asdict(wan_random.pass_flops(model))

    def around(self, model: VideoModel) -> Around:
        from flgbench.models import wan_random

        return Around(wan_random.around_flops(model), wan_random.activation_bytes(model))

    def _refuse_checkpoint(self) -> None:
        if self.checkpoint or self.revision:
            known = ", ".join(CHECKPOINTS)
            raise UsageError(f"--checkpoint and --revision need --scale {known}: the tiny weights ship with the package")

    def _facts(self, scale: str) -> WanCheckpoint:
        """As published; where a checkpoint was named, with what its folder says."""
        published = CHECKPOINTS[scale]
        return Checkpoint(self.folder(scale)).facts(published) if self.checkpoint else published

    def _checked(self, scale: str) -> Checkpoint:
        found = Checkpoint(self.folder(scale))
        found.check(None if self.checkpoint else CHECKPOINTS[scale])
        return found
