"""The shipped folder is an ordinary diffusers folder: the stock Wan pipeline loads it and makes our clips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.errors import UsageError
from flgbench.models import families
from flgbench.models.families import WanXFamily
from flgbench.sampling import GuidedVelocity, clip_noise, euler

STEPS, GUIDANCE = 3, 3.0


def test_stock_pipeline_makes_our_clip() -> None:
    family = WanXFamily()
    ours = family.load("tiny")
    pipeline = WanImageToVideoPipeline.from_pretrained(family.folder("tiny"))
    pipeline.set_progress_bar_config(disable=True)
    factors = shapes.draw_factors("validation", np.arange(1))
    first, caption = shapes.render(factors)[:, 0], captions_of(factors)
    noise = clip_noise(0, 0, 0, ours.latent_shape)[None]
    stock = pipeline(
        Image.fromarray(first[0].numpy()),
        caption,
        negative_prompt="",
        height=64,
        width=64,
        num_frames=17,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        max_sequence_length=20,
        latents=noise,
        output_type="latent",
    ).frames
    # The stock pipeline leaves the schedule to its scheduler, whose last time before 0 is 1/1000 shifted, not 1/steps:
    # parity is of everything else, on the scheduler's own times.
    velocity = GuidedVelocity(ours, ours.condition(first, caption), GUIDANCE)
    with torch.inference_mode():
        latents = euler(velocity, noise, pipeline.scheduler.sigmas)
    assert velocity.nfe == 2 * STEPS
    torch.testing.assert_close(latents, stock, atol=2e-4, rtol=1e-3)


def test_changed_weights_are_refused(tmp_path, monkeypatch) -> None:
    import shutil

    source = WanXFamily().folder("tiny")
    shutil.copytree(source, tmp_path / "wanx-tiny")
    config = tmp_path / "wanx-tiny" / "transformer" / "config.json"
    config.write_text(config.read_text() + " ")
    monkeypatch.setattr(families, "WEIGHTS", tmp_path)
    families.verify.cache_clear()
    with pytest.raises(UsageError, match=r"config\.json: sha256"):
        WanXFamily().load("tiny")
    families.verify.cache_clear()


def test_every_shipped_file_is_small() -> None:
    total = sum(p.stat().st_size for p in WanXFamily().folder("tiny").rglob("*") if p.is_file())
    assert total <= 15e6
