"""What is known of a published checkpoint in diffusers layout before its files are. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PublishedCheckpoint:
    """`transformer`, `vae` and `text_encoder` are arguments of diffusers' and transformers' own classes.

    `clip` is (frames, height, width) in pixels. `guidance_scale` is the teacher's, by two passes or embedded.
    `negative_caption` is what guidance extrapolates from; `text_length` the number of caption tokens that are read.
    """

    repository: str
    clip: tuple[int, int, int]
    fps: int
    shift: float
    guidance_scale: float
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    negative_caption: str = field(kw_only=True)
    text_length: int = field(kw_only=True)
    num_inference_steps: int = field(default=50, kw_only=True)  # of the paper's teacher


@dataclass(frozen=True)
class BlockKind:
    """Blocks of one sort that stand one after the other: what they are called, how many, and parameters of each."""

    name: str
    count: int
    parameters: int
