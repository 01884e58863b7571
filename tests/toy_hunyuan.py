"""A hunyuan teacher of five blocks with seeded random weights, and the folder that makes it the family's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel

from flgbench.data import shapes
from flgbench.models import hunyuan_family
from flgbench.models.hunyuan import Hunyuan
from flgbench.models.tiny import hunyuan as recipe
from flgbench.models.tiny import hunyuan_pretrain, hunyuan_text, hunyuan_vae
from flgbench.shipped import verify, write_hashes

DOUBLES, SINGLES = 2, 3
SMALL = {**recipe.TRANSFORMER, "num_attention_heads": 1, "num_layers": DOUBLES, "num_single_layers": SINGLES}


def build() -> Hunyuan:
    """The classes and the clip shape of the tiny teacher, five blocks of width 32."""
    with torch.random.fork_rng():
        reader = hunyuan_text.build()
        vae = hunyuan_vae.build().requires_grad_(False).eval()
        torch.manual_seed(0)
        transformer = HunyuanVideoTransformer3DModel(**SMALL).requires_grad_(False).eval()
    return Hunyuan(transformer, vae, reader, (shapes.FRAMES, shapes.SIZE, shapes.SIZE))


@contextmanager
def installed(model: Hunyuan, folder: Path) -> Iterator[Path]:
    """While open, `model` is the weights that the family finds, in `folder`."""
    hunyuan_pretrain.write_folder(model, FlowMatchEulerDiscreteScheduler(shift=3.0), folder / "hunyuan-tiny")
    write_hashes(folder / "hunyuan-tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hunyuan_family, "WEIGHTS", folder)
        verify.cache_clear()
        yield folder
    verify.cache_clear()
