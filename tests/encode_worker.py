"""Encoding of a folder as a program that ends itself by SIGKILL: python encode_worker.py CLIPS CAPTIONS OUT CLIPS_READ."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import build_tiny_model

from flgbench.data import clips
from flgbench.data.captions_file import read_captions
from flgbench.data.clips import OnClip
from flgbench.data.source import PLAIN
from flgbench.data.videos import Shape
from flgbench.models.wanx import WanX

SHAPE = Shape(frames=5, height=32, width=32, fps=8)  # small, and long enough for two latent frames
SHARD_CLIPS = 8


def small(model: WanX) -> WanX:
    """The tiny model for clips of `SHAPE`."""
    size = (SHAPE.frames, SHAPE.height, SHAPE.width)
    return WanX(model.transformer, model.vae, model.text_encoder, model.tokenizer, size, model.text_length)


def encode(model: WanX, folder: Path, captions: Path, out: Path, on_clip: OnClip = lambda *_: None) -> dict[str, Any]:
    """As the verb does it, with the model at hand."""
    source = clips.find_clips(folder, read_captions(captions))
    settings = clips.settings_of("wanx", "tiny", "in memory", SHAPE, SHARD_CLIPS)
    done = clips.check_output(out, settings, source)
    return done or clips.encode(model, SHAPE, source, out, settings, SHARD_CLIPS, 2, on_clip, PLAIN)


if __name__ == "__main__":
    torch.set_num_threads(1)
    left = int(sys.argv[4])

    def count(file: str, bad: str | None, new: bool) -> None:
        global left
        left -= new
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    encode(small(build_tiny_model()), *(Path(a) for a in sys.argv[1:4]), count)
