"""The hunyuan family: where its teachers are and which numbers its methods start from."""

from __future__ import annotations

import json
from pathlib import Path

from flgbench.contracts import FamilyPreset
from flgbench.costs import Calibration, Network
from flgbench.errors import UsageError
from flgbench.models import hunyuan_cost
from flgbench.models.base import Placement, VideoModel
from flgbench.models.checkpoint_family import TINY, WEIGHTS, CheckpointFamily, real_placement
from flgbench.models.hunyuan_checkpoint import HunyuanFolder
from flgbench.models.hunyuan_presets import CHECKPOINTS, TINY_TRANSFORMER, HunyuanCheckpoint, block_kinds, words_read
from flgbench.shipped import HASHES, verify

BETA1 = 2.0  # the paper's for HunyuanVideo, and beta2
BETA2 = 0.25
# The tiny teacher on one core of an Intel Xeon with AVX-512: 1.08 times what was timed alone, beside the second core's work.
# Trainings of reports/measured/hunyuan took 1.00 to 1.16 times what it tells, ICMD's, beside the encoding, 1.29.
TIMED = Calibration(forward=0.0111, trained=0.0316, update=0.0036, sampled=0.0052)


class HunyuanFamily(CheckpointFamily[HunyuanCheckpoint]):
    """HunyuanVideo image-to-video, guidance-distilled."""

    name = "hunyuan"
    scales = (TINY, *CHECKPOINTS)
    checkpoints = CHECKPOINTS
    random_weights = "flgbench.models.hunyuan_random"
    layout = HunyuanFolder
    recipe = "flgbench.models.tiny.hunyuan_pretrain"
    effort = "hours on two cores"  # of making the tiny weights

    def preset(self, scale: str) -> FamilyPreset:
        if scale == TINY:
            self.refuse_checkpoint()
            kinds = block_kinds(TINY_TRANSFORMER)
            return FamilyPreset(
                shift=3.0,
                guidance_scale=2.0,
                num_inference_steps=50,
                clip=(17, 64, 64),
                fps=8,
                blocks=sum(kind.count for kind in kinds),
                self_attention_share=0.0,  # text and video share it
                guidance_is_embedded=True,
                beta1=BETA1,
                beta2=BETA2,
                kinds=kinds,
            )
        facts = self.facts(scale)
        kinds = block_kinds(facts.transformer)
        return FamilyPreset(
            shift=facts.shift,
            guidance_scale=facts.guidance_scale,
            num_inference_steps=facts.num_inference_steps,
            clip=facts.clip,
            fps=facts.fps,
            blocks=sum(kind.count for kind in kinds),
            self_attention_share=0.0,
            guidance_is_embedded=bool(facts.transformer.get("guidance_embeds", True)),
            beta1=BETA1,
            beta2=BETA2,
            kinds=kinds,
        )

    def tiny_folder(self) -> Path:
        return WEIGHTS / f"{self.name}-{TINY}"

    def verify_tiny(self) -> None:
        folder = self.folder(TINY)
        if not (folder / HASHES).exists():
            raise UsageError(
                f"no weights in {folder}: reinstall the package, or make them with "
                f"`flgbench pretrain --model {self.name}` ({self.effort})"
            )
        verify(folder)

    def network(self, scale: str) -> Network | None:
        if scale != TINY:
            return hunyuan_cost.published(self.facts(scale))
        own = json.loads((self.folder(scale) / "flgbench.json").read_text())
        words = words_read(own["prompt_template"]["image_emb_len"], own["text_length"])
        return hunyuan_cost.sizes(TINY_TRANSFORMER, own["clip_shape"], (4, 8), words, TIMED)

    def load(self, scale: str, placement: Placement | None = None) -> VideoModel:
        from flgbench.models.hunyuan import Hunyuan

        if scale == TINY:
            self.verify_tiny()
            return Hunyuan.load(self.folder(scale), placement or Placement())
        return Hunyuan.load(self.checked(scale).folder, placement or real_placement(), self.clip_settings(scale))
