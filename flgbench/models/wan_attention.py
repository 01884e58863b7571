"""Self-attention of a Wan block in three forms: over all tokens (as diffusers' own), within a latent frame, or none.

Tokens are (B, N, width) in frame-major order: N = frames x tokens of a frame. Heads follow the tokens: (B, N, heads, D).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import nn

from flgbench.models.base import SelfAttention
from flgbench.models.cpu_kernels import normalise, rotate, turns_of

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, (1, N, 1, D), every angle twice


def project(
    attention: Any, tokens: torch.Tensor, rotary: Rotary | None, seen: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query of `tokens`, key and value of `seen`, by default of `tokens` too, of a `WanAttention`, (B, N, heads, D) each,
    after its qk-norm and, if there is one, rotary embedding."""
    seen = tokens if seen is None else seen
    query, key, value = (
        normalise(attention.to_q(tokens), attention.norm_q),
        normalise(attention.to_k(seen), attention.norm_k),
        attention.to_v(seen),
    )
    query, key, value = (x.unflatten(2, (attention.heads, -1)) for x in (query, key, value))
    if rotary is None:
        return query, key, value
    turns = turns_of(rotary)
    return rotate(query, turns), rotate(key, turns), value


class LeanProcessor:
    """diffusers' `WanAttnProcessor` without tokens of an image encoder: the same numbers from fewer kernels, whose starting
    is most of a pass where the network is tiny and on a CPU."""

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Of every query to every key; all (B, N, heads, D)."""
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> torch.Tensor:
        assert attention_mask is None and attn.add_k_proj is None
        out = self.attend(*project(attn, hidden_states, rotary_emb, encoder_hidden_states)).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


def full_attention(attention: Any) -> LeanProcessor | WanAttnProcessor:
    """The processor with which a `WanAttention` sees everything: the lean one where it will do and is faster."""
    lean = attention.add_k_proj is None and attention.to_q.weight.device.type == "cpu"
    return LeanProcessor() if lean else WanAttnProcessor()


def with_lean_attention(transformer: Any) -> Any:
    """Switch diffusers' processors in `transformer` to lean ones where `full_attention` says so, in place."""
    for module in transformer.modules():
        if isinstance(module, WanAttention) and type(module.processor) is WanAttnProcessor:
            module.set_processor(full_attention(module))
    return transformer


def frame_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, frames: int) -> torch.Tensor:
    """Attention of every token to its own frame and to frame 0; all (B, N, heads, D).

    Frame 0 stays visible because an image-to-video model puts its first frame there, and no other way leads from it.
    """
    batch = len(query)
    q, k, v = (x.unflatten(1, (frames, -1)).transpose(2, 3) for x in (query, key, value))  # (B, T, heads, n, D)

    def own_and_first(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :1].expand_as(x[:, 1:]), x[:, 1:]], dim=3).flatten(0, 1)

    first = F.scaled_dot_product_attention(q[:, 0], k[:, 0], v[:, 0])
    # Frames join the batch: the fused kernels take four dimensions.
    others = F.scaled_dot_product_attention(q[:, 1:].flatten(0, 1), own_and_first(k), own_and_first(v))
    return torch.cat([first[:, None], others.unflatten(0, (batch, -1))], dim=1).transpose(2, 3).flatten(1, 2)


class FrameProcessor(LeanProcessor):
    """Restricts self-attention as `frame_attention` does, on any device."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return frame_attention(query, key, value, self.frames)


class BlockWithoutSelfAttention(nn.Module):
    """A `WanTransformerBlock` reduced to cross-attention and feed-forward, with the weights of `block`.

    The rows of the modulation table that served self-attention (shift, scale, gate) are gone with it.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm2, self.attn2, self.norm3, self.ffn = block.norm2, block.attn2, block.norm3, block.ffn
        table = block.scale_shift_table
        self.scale_shift_table = nn.Parameter(table[:, 3:].detach().clone(), requires_grad=table.requires_grad)
        self.train(block.training)

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, temb: torch.Tensor, rotary_emb: Rotary
    ) -> torch.Tensor:
        """Tokens (B, N, width) to tokens. `temb` is (B, 6, width), or (B, N, 6, width) where tokens have their own times.

        Its last three modulate the feed-forward.
        """
        shift, scale, gate = (self.scale_shift_table + temb[..., 3:, :].float()).chunk(3, dim=-2)
        if temb.ndim == 4:
            shift, scale, gate = shift.squeeze(2), scale.squeeze(2), gate.squeeze(2)
        x = hidden_states
        x = x + self.attn2(self.norm2(x.float()).type_as(x), encoder_hidden_states, None, None)
        out = self.ffn((self.norm3(x.float()) * (1 + scale) + shift).type_as(x))
        return (x.float() + out.float() * gate).type_as(x)


def kind_of(block: Any) -> SelfAttention:
    """Which of the three forms a block has."""
    if isinstance(block, BlockWithoutSelfAttention):
        return "none"
    return "frame" if isinstance(block.attn1.processor, FrameProcessor) else "full"


def with_kind(block: Any, kind: SelfAttention, frames: int) -> nn.Module:
    """`block` in the form `kind`, changed in place where its parameters stay. What was removed cannot come back."""
    if kind == kind_of(block):
        return block
    if kind_of(block) == "none":
        raise ValueError(f"no self-attention is left that could become '{kind}'")
    if kind == "none":
        return BlockWithoutSelfAttention(block)
    block.attn1.set_processor(FrameProcessor(frames) if kind == "frame" else full_attention(block.attn1))
    return block
