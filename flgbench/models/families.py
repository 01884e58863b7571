"""The wanx family: where its teachers are and which numbers its methods start from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from flgbench import costs
from flgbench.contracts import FamilyPreset
from flgbench.costs import Calibration, Network
from flgbench.models.base import Placement, VideoModel
from flgbench.models.checkpoint_family import TINY, WEIGHTS, CheckpointFamily, real_placement
from flgbench.models.wan_checkpoint import Checkpoint
from flgbench.models.wan_presets import CHECKPOINTS, WanCheckpoint, denoiser_size
from flgbench.shipped import verify

# The tiny teacher on one core of an Intel Xeon with AVX-512, timed alone. It tells the steps of reports/measured within
# 18 %, but for F3-b (26 %): its passes count whole and compute less.
TIMED = Calibration(forward=0.011, trained=0.035, update=0.004, sampled=0.0063)


class WanXFamily(CheckpointFamily[WanCheckpoint]):
    """Wan image-to-video. `tiny` ships with the package, its 17x64x64 clips are procedural; the others are checkpoints."""

    name = "wanx"
    scales = (TINY, *CHECKPOINTS)
    checkpoints = CHECKPOINTS
    random_weights = "flgbench.models.wan_random"
    layout = Checkpoint

    def preset(self, scale: str) -> FamilyPreset:
        if scale == TINY:
            self.refuse_checkpoint()
            return FamilyPreset(
                shift=3.0,
                guidance_scale=2.0,
                num_inference_steps=50,
                clip=(17, 64, 64),
                fps=8,
                blocks=10,
                self_attention_share=0.236,
            )
        facts = self.facts(scale)
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

    def tiny_folder(self) -> Path:
        return WEIGHTS / f"{self.name}-{TINY}"

    def verify_tiny(self) -> None:
        verify(self.folder(TINY))

    def network(self, scale: str) -> Network:
        if scale != TINY:
            return costs.wan_checkpoint(self.facts(scale))
        folder = self.folder(scale)
        own = json.loads((folder / "flgbench.json").read_text())
        config = json.loads((folder / "transformer" / "config.json").read_text())
        return replace(costs.wan(config, own["clip_shape"], (4, 8), own["text_length"]), calibration=TIMED)

    def load(self, scale: str, placement: Placement | None = None) -> VideoModel:
        from flgbench.models.wanx import WanX

        if scale == TINY:
            self.verify_tiny()
            return WanX.load(self.folder(scale), placement=placement or Placement())
        return WanX.load(self.checked(scale).folder, self.clip_settings(scale), placement or real_placement())
