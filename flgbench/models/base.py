"""What every family offers the engine and the methods: a velocity, its blocks, and a condition.

Notation (methods.md): x_t = (1 - t) x0 + t eps, velocity v = eps - x0, t = 1 is noise. Latents are (B, C, T, H, W).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import nn

from flgbench.errors import UsageError

if TYPE_CHECKING:
    from flgbench.sampling import SamplerSettings

# What a block's self-attention sees: every token, its own latent frame and the first one, or there is none.
SelfAttention = Literal["full", "frame", "none"]


@dataclass(frozen=True)
class StudentShape:
    """What of a teacher's network a student computes: its blocks (original indices) and the self-attention of each."""

    kept: tuple[int, ...]
    self_attention: tuple[SelfAttention, ...]

    @classmethod
    def without(cls, blocks: int, drop: Sequence[int] = ()) -> StudentShape:
        """`blocks` blocks but those in `drop`, all with full self-attention."""
        kept = tuple(i for i in range(blocks) if i not in set(drop))
        full: SelfAttention = "full"
        return cls(kept, (full,) * len(kept))


@dataclass(frozen=True)
class Condition:
    """What a clip is generated from.

    text: (B, L, D) caption embeddings; negative_text: (1, L, D) those of the negative caption;
    image: (B, C', T, H, W) the family's encoding of the first frame, which the model concatenates to the latents or puts
    in the place of their first frame (T = 1).
    extras: what else a family's denoiser is told, (B, ...) each, for example an image encoder's tokens or a mask of the
    caption's length; negative_extras: (1, ...) those that differ with the negative caption, by the same names.
    """

    text: torch.Tensor
    negative_text: torch.Tensor
    image: torch.Tensor
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)
    negative_extras: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.text)

    def select(self, indices: torch.Tensor | slice) -> Condition:
        extras = {name: value[indices] for name, value in self.extras.items()}
        return replace(self, text=self.text[indices], image=self.image[indices], extras=extras)

    def unconditional(self) -> Condition:
        """The branch that classifier-free guidance extrapolates from: negative text, same image (methods.md, c0)."""
        negative = {name: value.expand(len(self), *value.shape[1:]) for name, value in self.negative_extras.items()}
        text = self.negative_text.expand(len(self), -1, -1)
        return replace(self, text=text, extras={**self.extras, **negative})

    def guided(self, scale: float) -> Condition:
        """The same, asked at the guidance scale that a guidance-distilled network is told (its extra 'guidance')."""
        if "guidance" not in self.extras:
            raise UsageError("embedded_guidance: this family's network is told no guidance scale; use guidance_scale")
        asked = torch.full_like(self.extras["guidance"], scale)
        return replace(self, extras={**self.extras, "guidance": asked})

    def to(self, device: torch.device | str) -> Condition:
        return Condition.from_tensors({name: value.to(device) for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it by name, as `from_tensors` reads it back from a file."""
        own = {"text": self.text, "negative_text": self.negative_text, "image": self.image}
        extras = {f"extra.{k}": v for k, v in self.extras.items()}
        return own | extras | {f"negative_extra.{k}": v for k, v in self.negative_extras.items()}

    @staticmethod
    def from_tensors(tensors: Mapping[str, torch.Tensor]) -> Condition:
        """The condition that `tensors()` named; other names are left alone."""
        extras, negative = (
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            for prefix in ("extra.", "negative_extra.")
        )
        return Condition(tensors["text"], tensors["negative_text"], tensors["image"], extras, negative)

    @staticmethod
    def concatenate(parts: Sequence[Condition]) -> Condition:
        """One batch of several; the negative caption is that of the first."""
        shared = ("negative_text", "negative_extra.")
        named = [part.tensors() for part in parts]
        return Condition.from_tensors(
            {k: v if k.startswith(shared) else torch.cat([part[k] for part in named]) for k, v in named[0].items()}
        )


@dataclass(frozen=True)
class Placement:
    """Where a denoiser is, and the dtype of its large matrices."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32


class PassTally:
    """Network passes of single clips, in units of one forward through the dense teacher.

    A backward counts two more, or one where only the input needs its gradient. In a training over several `processes`,
    which do the same passes at the same time, those of all are counted.
    """

    def __init__(self) -> None:
        self.passes, self.processes = 0.0, 1

    def add(self, passes: float) -> None:
        self.passes += passes * self.processes


@dataclass(frozen=True)
class StockCall:
    """A call of diffusers' own pipeline `pipe` that makes a model's clips.

    `arguments` besides image and prompt; `setup`: lines of Python before it. `even_times`: the pipeline hands the scheduler
    even times, which it only shifts; otherwise the scheduler spaces them.
    """

    arguments: Mapping[str, Any]
    setup: tuple[str, ...] = ()
    even_times: bool = False


class VideoModel(ABC):
    """A denoiser of one family with a list of residual blocks that can be skipped or deleted."""

    transformer: Any  # a diffusers model; an nn.Module with `blocks`, `save_pretrained` and `register_to_config`
    latent_shape: tuple[int, int, int, int]  # C, T, H, W of one clip
    text_length: int  # caption tokens that are read
    n_teacher_blocks: int
    negative_caption: str
    tally: PassTally  # shared by all copies of a model
    shares_weights = False  # with its copies: for timing many networks in the room of one, never for training

    @abstractmethod
    def velocity(self, x: torch.Tensor, t: torch.Tensor, condition: Condition, skip: Sequence[int] = ()) -> torch.Tensor:
        """Velocity at x (B, C, T, H, W) and times t (B,) in [0, 1]; blocks in `skip` are bypassed whole.

        Inputs may be anywhere: they are taken to the model's device and dtype. The velocity is fp32, on that device.
        `skip` holds positions in the present list of blocks (0 ... n_blocks - 1).
        """

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the denoiser is: there its velocities, latents and conditions are; clips in pixels are on the CPU."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the denoiser's large matrices, and so of its matrix products."""

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """The blocks that may be skipped or deleted, in order."""

    @property
    def block_kinds(self) -> tuple[str, ...]:
        """What each block is called where a family has several sorts of them."""
        return ("block",) * len(self.blocks)

    @property
    def block_parameters(self) -> tuple[int, ...]:
        """Parameters of each block."""
        return tuple(sum(p.numel() for p in block.parameters()) for block in self.blocks)

    def block_tokens(self, output: Any) -> torch.Tensor:
        """The video's tokens (B, N, width) in what a block returned, frame after frame."""
        return output

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.transformer.config.num_attention_heads * self.transformer.config.attention_head_dim

    @property
    @abstractmethod
    def kept_blocks(self) -> tuple[int, ...]:
        """Original indices of the blocks that are still there."""

    @abstractmethod
    def without_blocks(self, drop: Sequence[int]) -> VideoModel:
        """A copy with the blocks at positions `drop` really deleted and the rest re-indexed."""

    @property
    @abstractmethod
    def self_attention(self) -> tuple[SelfAttention, ...]:
        """The self-attention of each block, by position."""

    @abstractmethod
    def with_self_attention(self, kinds: Sequence[SelfAttention]) -> VideoModel:
        """A copy whose blocks have the self-attention `kinds`, one a position; 'none' really deletes its parameters."""

    @property
    @abstractmethod
    def token_frames(self) -> int:
        """Frames that the tokens of a clip belong to: they are laid out frame after frame."""

    @abstractmethod
    def listening_to_self_attention(
        self, listener: Callable[[int, torch.Tensor, torch.Tensor], None]
    ) -> AbstractContextManager[None]:
        """While open, every pass calls `listener(position, query, key)` for each block that has self-attention.

        Query and key are (B, tokens, heads, D), as they are compared: after normalisation and rotary embedding.
        """

    @abstractmethod
    def with_transformer(self, folder: Path) -> VideoModel:
        """The same encoders around the denoiser that `save` wrote into `folder`; frozen."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the denoiser in diffusers layout (config.json + safetensors)."""

    @abstractmethod
    def stock_pipeline(self, scheduler: Any) -> Any:
        """diffusers' own pipeline around the parts of this model."""

    @abstractmethod
    def stock_call(self, sampler: SamplerSettings) -> StockCall:
        """How that pipeline makes the clips of `sampler`. Raises UsageError where it cannot."""

    def stock_noise(self, draw: int, condition: Condition, generator: torch.Generator) -> torch.Tensor:
        """What that pipeline draws, (1, C, T', H', W'): `draw` 0 to start from, draw i + 1 to renoise with after step i."""
        return torch.randn(1, *self.latent_shape, generator=generator)

    def copy(self) -> Self:
        """A model with its own denoiser weights, unless it `shares_weights`; encoders are shared."""
        twin = copy.copy(self)
        shared: dict[int, Any] = {id(p): p for p in self.transformer.parameters()} if self.shares_weights else {}
        twin.transformer = copy.deepcopy(self.transformer, shared)
        return twin

    def shaped(self, shape: StudentShape) -> VideoModel:
        """A copy with the blocks and the self-attention of `shape`."""
        student = self.without_blocks([i for i in range(len(self.blocks)) if i not in shape.kept])
        return student.with_self_attention(shape.self_attention)

    def requires_grad_(self, flag: bool) -> Self:
        self.transformer.requires_grad_(flag)
        return self

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.transformer.parameters())

    def held(self) -> list[Any]:
        """What it is made of: modules, parts that are not read yet, and what needs no memory."""
        return list(vars(self).values())

    @abstractmethod
    def release_encoders(self) -> None:
        """Free the encoders that can be read again; they are, when they are needed again."""

    @abstractmethod
    def encode_video(self, video: torch.Tensor) -> torch.Tensor:
        """(B, T, H, W, 3) uint8 pixels -> (B, C, T', H', W') normalised latents."""

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents -> (B, T, H, W, 3) uint8 pixels, on the CPU."""

    @abstractmethod
    def encode_text(self, captions: Sequence[str]) -> torch.Tensor:
        """(B, L, D) embeddings; zero behind each caption's end, as the stock pipeline makes them."""

    def remarks(self, caption: str) -> list[str]:
        """What of `caption` the model cannot read, one sentence each."""
        return []

    @abstractmethod
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) uint8 first frames -> (B, C', T', H', W')."""

    @abstractmethod
    def condition(self, images: torch.Tensor, captions: Sequence[str]) -> Condition:
        """Everything the denoiser is told about a batch of clips; of what else it can be told (`with_inputs`), nothing."""

    def with_inputs(self, condition: Condition, inputs: Mapping[str, torch.Tensor]) -> Condition:
        """`condition` with what its clips tell besides first frames and captions, (B, ...) each: `ClipSource.inputs`.

        Raises UsageError for inputs that this model is not told.
        """
        if inputs:
            raise UsageError(f"this family's network is told no {', '.join(inputs)}")
        return condition
