"""A wanx model of a few thousand parameters and a handful of clips: everything that tests need of a model, in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several test processes: each has a core, and so have its children
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from flgbench import cli, training
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.models.folded_conv import fold_convolutions
from flgbench.models.tiny.wanx import TEXT, TEXT_LENGTH, TRANSFORMER, build_tokenizer
from flgbench.models.tiny.wanx_vae import CONFIG
from flgbench.models.wanx import WanX
from flgbench.stage import TrainingData

BLOCKS, CLIPS = 4, 8
SMALL = {**TRANSFORMER, "num_layers": BLOCKS, "num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32}
# Wan's autoencoder has statistics far from (0, 1): a forgotten normalisation must show.
MEAN, STD = [0.1 * c - 0.7 for c in range(16)], [0.6 + 0.05 * c for c in range(16)]


def stock_vae() -> AutoencoderKLWan:
    """The autoencoder with diffusers' own convolutions, seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vae = AutoencoderKLWan(latents_mean=MEAN, latents_std=STD, **CONFIG)
    return vae.requires_grad_(False).eval()


def build_tiny_model() -> WanX:
    """The same classes and clip shape as the shipped teacher, with four blocks of width 24 and seeded random weights."""
    tokenizer = build_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UMT5Config(**TEXT, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
        text_encoder = UMT5EncoderModel(config).requires_grad_(False).eval()
        transformer = WanTransformer3DModel(**SMALL).requires_grad_(False).eval()
    clip_shape = (shapes.FRAMES, shapes.SIZE, shapes.SIZE)
    return WanX(transformer, fold_convolutions(stock_vae()), text_encoder, tokenizer, clip_shape, TEXT_LENGTH)


def build_tiny_data(model: WanX) -> TrainingData:
    """Random latents under true conditions: the tests ask how training runs, not what it learns."""
    factors = shapes.draw_factors("train", np.arange(CLIPS))
    latents = torch.randn((CLIPS, *model.latent_shape), generator=torch.Generator().manual_seed(2))
    return TrainingData(latents, model.condition(shapes.render(factors)[:, 0], captions_of(factors)))


@pytest.fixture(scope="session")
def tiny_model() -> WanX:
    """Shared by all tests of a session: copy it before changing anything."""
    return build_tiny_model()


@pytest.fixture(scope="session")
def tiny_data(tiny_model: WanX) -> TrainingData:
    return build_tiny_data(tiny_model)


@pytest.fixture
def log_every_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 1)


Flgbench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def flgbench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Flgbench:
    """Runs a command line in this process and in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flgbench", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2, err
    assert err.startswith("flgbench: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert out == ""
    for word in words:
        assert word in err, err
