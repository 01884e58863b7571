"""HunyuanVideo that hears: audio tokens enter every block's video stream by gated cross-attention (ATI2V).

What is heard are features of every video frame, (B, frames, features). A small encoder makes one token of each latent
frame: of the first its one video frame, of every other one its four. Behind every block, double or single,

    x <- x + W_out (attention(W_q norm(x); W_k a, W_v a) * silu(W_gate norm(x))),   W_out = 0 before training,

where the tokens of a latent frame attend to the audio tokens of their own frame and of those next to it, with a learned
bias for each of the three. The gate lets a token decide what a sound means to it: an object's edge, or background. An
untrained adapter leaves the plain model as it is, bit for bit.

The adapter of a block is a part of it: skipped, deleted, sharded, fused and saved with it. Guidance is about the caption:
the negative branch hears the same sound, as it sees the same image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoRotaryPosEmbed,
    HunyuanVideoTokenReplaceSingleTransformerBlock,
    HunyuanVideoTokenReplaceTransformerBlock,
)
from torch import nn

from flgbench.data import mel, sound
from flgbench.models.base import Condition
from flgbench.models.hunyuan import Hunyuan

WINDOW = 1  # latent frames before and behind its own that a token hears
Rotary = tuple[torch.Tensor, ...]


class AudioEncoder(nn.Module):
    """Features (B, frames, features) of video frames to one token (B, latent frames, width) of each latent frame."""

    def __init__(self, features: int, width: int, compression: int) -> None:
        super().__init__()
        self.compression = compression
        self.frame = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.join = nn.Linear(compression * width, width)

    def forward(self, heard: torch.Tensor) -> torch.Tensor:
        frames = F.pad(self.frame(heard), (0, 0, self.compression - 1, 0))  # the first latent frame is one video frame
        return self.join(frames.unflatten(1, (-1, self.compression)).flatten(2))


class AudioAttention(nn.Module):
    """What a block's video tokens (B, N, width) take from audio tokens (B, frames, audio width); 0 before training."""

    def __init__(self, width: int, heads: int, audio_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.to_q, self.to_gate = nn.Linear(width, width), nn.Linear(width, width)
        self.to_k, self.to_v = nn.Linear(audio_width, width), nn.Linear(audio_width, width)
        self.near = nn.Parameter(torch.zeros(heads, 2 * WINDOW + 1))
        self.to_out = nn.Linear(width, width)
        nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def forward(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(video)
        query, key, value = (
            x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(tokens), self.to_k(audio), self.to_v(audio))
        )
        bias = self._bias(video.shape[1], audio.shape[1]).to(query.dtype)
        taken = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
        return self.to_out(taken * F.silu(self.to_gate(tokens)))

    def _bias(self, tokens: int, frames: int) -> torch.Tensor:
        """(1, heads, tokens, frames): video tokens lie frame after frame."""
        at = torch.arange(frames, device=self.near.device)
        away = at - at[:, None] + WINDOW
        inside = (away >= 0) & (away <= 2 * WINDOW)
        bias = self.near[:, away.clamp(0, 2 * WINDOW)].masked_fill(~inside, float("-inf"))
        return bias.repeat_interleave(tokens // frames, dim=1)[None]


class _Hears:
    """A block of diffusers with an adapter behind it. Audio tokens come as a third part of the rotary embedding."""

    audio: AudioAttention

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: Rotary,
        *rest: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rotary, heard = image_rotary_emb[:2], image_rotary_emb[2:]
        plain: Any = super()
        video, text = plain.forward(hidden_states, encoder_hidden_states, temb, attention_mask, rotary, *rest)
        return (video + self.audio(video, *heard) if heard else video), text


class HearingDoubleBlock(_Hears, HunyuanVideoTokenReplaceTransformerBlock):
    """A double block that hears."""


class HearingSingleBlock(_Hears, HunyuanVideoTokenReplaceSingleTransformerBlock):
    """A single block that hears."""


_HEARING = {
    HunyuanVideoTokenReplaceTransformerBlock: HearingDoubleBlock,
    HunyuanVideoTokenReplaceSingleTransformerBlock: HearingSingleBlock,
}
for _block in _HEARING.values():  # for diffusers' caches
    TransformerBlockRegistry.register(
        _block, TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1)
    )


class _RotaryWithAudio(HunyuanVideoRotaryPosEmbed):
    """Hands `heard` on beside the rotary embedding: every block gets it as an argument, also where activations are
    computed again, and the stock forward stays as it is."""

    heard: tuple[torch.Tensor, ...] = ()

    def forward(self, hidden_states: torch.Tensor) -> Rotary:
        return (*super().forward(hidden_states), *self.heard)


class HearingTransformer(HunyuanVideoTransformer3DModel):
    """diffusers' transformer in its `token_replace` form, with an audio encoder and adapters; arguments as the stock's.

    audio_features: of one video frame; audio_width: of an audio token; audio_compression: video frames of a latent one.
    """

    _no_split_modules = [*HunyuanVideoTransformer3DModel._no_split_modules, "HearingDoubleBlock", "HearingSingleBlock"]

    def __init__(self, audio_features: int = 128, audio_width: int = 64, audio_compression: int = 4, **stock: Any) -> None:
        super().__init__(**stock)
        self.register_to_config(audio_features=audio_features, audio_width=audio_width, audio_compression=audio_compression)
        config = self.config
        self.audio_encoder = AudioEncoder(audio_features, audio_width, audio_compression)
        self.rope.__class__ = _RotaryWithAudio
        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            if type(block) not in _HEARING:
                raise ValueError("audio needs image_condition_type 'token_replace'")
            block.__class__ = _HEARING[type(block)]
            width = config.num_attention_heads * config.attention_head_dim
            block.audio = AudioAttention(width, config.num_attention_heads, audio_width)

    @staticmethod
    def _get_init_keys(input_class: type) -> set[str]:
        """Of the config: what this class adds and all that the stock class has."""
        keys: set[str] = HunyuanVideoTransformer3DModel._get_init_keys(input_class)
        if "stock" not in keys:
            return keys
        return (keys - {"stock"}) | HunyuanVideoTransformer3DModel._get_init_keys(HunyuanVideoTransformer3DModel)

    @classmethod
    def around(cls, plain: HunyuanVideoTransformer3DModel, **audio: int) -> Self:
        """The same network with untrained adapters. Its weights are copies."""
        made = cls(**{name: plain.config[name] for name in cls._get_init_keys(type(plain)) - {"self"}}, **audio)
        made.load_state_dict(plain.state_dict(), strict=False)
        return nn.Module.to(made, plain.device, plain.dtype).eval()  # diffusers' own warns of every dtype

    def forward(self, *args: Any, audio: torch.Tensor | None = None, **named: Any) -> Any:
        """As the stock forward; `audio` (B, frames, audio_features), None: nothing is heard and no adapter used."""
        self.rope.heard = () if audio is None else (self.audio_encoder(audio),)
        try:
            return super().forward(*args, **named)
        finally:
            self.rope.heard = ()

    def adapter_parameters(self) -> list[nn.Parameter]:
        """What the stock network does not have."""
        return [p for name, p in self.named_parameters() if name.startswith("audio_encoder.") or ".audio." in name]


class HearingHunyuan(Hunyuan):
    """A HunyuanVideo image-to-video model that is told a sound too, as log-mel frames (extra 'audio')."""

    denoiser_class: ClassVar[type[HunyuanVideoTransformer3DModel]] = HearingTransformer

    @classmethod
    def around(cls, plain: Hunyuan) -> Self:
        """`plain` with untrained adapters: the same velocities, whatever is heard. Encoders are shared."""
        features = sound.FRAME_SAMPLES // mel.HOP * mel.BANDS
        compression = plain.vae.config.temporal_compression_ratio
        hears = HearingTransformer.around(plain.transformer, audio_features=features, audio_compression=compression)
        twin = cls(hears.requires_grad_(False), plain.vae, plain.reader, plain.clip_shape, plain.negative_caption)
        twin.tally = plain.tally
        return twin

    @torch.no_grad()
    def condition(self, images: torch.Tensor, captions: Sequence[str]) -> Condition:
        silence = torch.zeros(len(images), self.clip_shape[0] * sound.FRAME_SAMPLES)
        return self.with_inputs(super().condition(images, captions), {"sound": silence})

    def with_inputs(self, condition: Condition, inputs: Mapping[str, torch.Tensor]) -> Condition:
        """`sound` (B, S) at 16 kHz, as long as the clip."""
        rest = {name: value for name, value in inputs.items() if name != "sound"}
        if "sound" not in inputs:
            return super().with_inputs(condition, rest)
        frames = torch.from_numpy(mel.mel_frames(inputs["sound"].numpy()))
        heard = frames.unflatten(1, (self.clip_shape[0], -1)).flatten(2)
        told = Condition(
            condition.text,
            condition.negative_text,
            condition.image,
            {**condition.extras, "audio": heard},
            condition.negative_extras,
        )
        return super().with_inputs(told, rest)

    def _arguments(self, condition: Condition) -> dict[str, Any]:
        return super()._arguments(condition) | {"audio": condition.extras["audio"].to(self.dtype)}
