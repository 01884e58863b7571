"""The hunyuan family with sound: audio + text + image to video."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from flgbench.data.source import SoundingClips
from flgbench.errors import UsageError
from flgbench.models.base import Placement, VideoModel
from flgbench.models.checkpoint_family import TINY
from flgbench.models.hunyuan_family import HunyuanFamily


class HunyuanATI2VFamily(HunyuanFamily):
    """HunyuanVideo that hears: audio + text + image to video. `tiny` is the tiny hunyuan teacher with trained adapters.

    Its own folder holds the denoiser alone; encoders and autoencoder are those of the family without sound, which has to
    be the very one that it was trained from.
    """

    name = "hunyuan-ati2v"
    scales = (TINY,)
    checkpoints: ClassVar[Mapping[str, Any]] = {}  # none is public
    recipe = "flgbench.models.tiny.hunyuan_audio_pretrain"
    clips = SoundingClips()
    effort = "half an hour on one core"

    def load(self, scale: str, placement: Placement | None = None) -> VideoModel:
        from flgbench.models.hunyuan import Hunyuan
        from flgbench.models.hunyuan_audio import HearingHunyuan

        self.verify_tiny()
        plain = HunyuanFamily().load(scale, placement)
        assert isinstance(plain, Hunyuan)
        return HearingHunyuan.around(plain).with_transformer(self.folder(scale) / "transformer")

    def verify_tiny(self) -> None:
        super().verify_tiny()
        trained_from = json.loads((self.folder(TINY) / "recipe.json").read_text())["plain"]["sha256"]
        if HunyuanFamily().fingerprint(TINY) != trained_from:
            raise UsageError(
                f"weights of '{self.name}' were trained from another '{HunyuanFamily.name}' than the installed one: "
                f"reinstall the package, or make them again with `flgbench pretrain --model {self.name}`"
            )

    def untrained(self, scale: str, clip: tuple[int, int, int], device: str, dtype: torch.dtype) -> VideoModel:
        raise UsageError(f"family '{self.name}' is not built with random weights: time its tiny ones, --weights teacher")

    def network(self, scale: str) -> None:
        """None: its adapters were not timed."""

    def pass_flops(self, model: VideoModel) -> Mapping[str, int]:
        """None: the formula of the family without sound knows no adapters."""
        return {}
