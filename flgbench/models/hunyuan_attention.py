"""Joint attention of a HunyuanVideo block in two forms: over everything (diffusers' own), or within a latent frame.

Video tokens come first, in frame-major order, then the text's. Heads follow the tokens: (B, N, heads, D).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0

from flgbench.models.base import SelfAttention

Rotary = tuple[torch.Tensor, torch.Tensor]


def project_video(attention: Any, tokens: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key (B, N, heads, D) of the video tokens (B, N, width), after qk-norm and rotary embedding."""
    query, key = (x.unflatten(2, (attention.heads, -1)) for x in (attention.to_q(tokens), attention.to_k(tokens)))
    query, key = attention.norm_q(query), attention.norm_k(key)
    return apply_rotary_emb(query, rotary, sequence_dim=1), apply_rotary_emb(key, rotary, sequence_dim=1)


def frame_attention(
    video: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    text: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    text_mask: torch.Tensor,
    frames: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query, key and value of video (B, N, heads, D) and text (B, L, heads, D) to the two attention outputs.

    A video token sees its own frame, frame 0 (the given image) and the text; a text token sees everything. `text_mask`
    (B, L) tells which text tokens are there.
    """
    batch = len(text_mask)
    q, k, v = (x.unflatten(1, (frames, -1)).transpose(2, 3) for x in video)  # (B, T, heads, n, D)
    text_q, text_k, text_v = (x.transpose(1, 2) for x in text)  # (B, heads, L, D)

    def visible(own: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        words = words[:, None].expand(-1, frames, -1, -1, -1)
        return torch.cat([own[:, :1].expand_as(own), own, words], dim=3).flatten(0, 1)

    n = q.shape[3]
    there = torch.ones(batch, frames, 2 * n, dtype=torch.bool, device=text_mask.device)
    there[:, 0, :n] = False  # frame 0 would see itself twice
    mask = torch.cat([there, text_mask[:, None].expand(-1, frames, -1)], dim=2).flatten(0, 1)[:, None, None]
    seen = F.scaled_dot_product_attention(q.flatten(0, 1), visible(k, text_k), visible(v, text_v), attn_mask=mask)
    all_k, all_v = (torch.cat([x.transpose(1, 2), y], dim=2) for x, y in ((video[1], text_k), (video[2], text_v)))
    everything = torch.ones(batch, video[0].shape[1], dtype=torch.bool, device=text_mask.device)
    mask = torch.cat([everything, text_mask], dim=1)[:, None, None]
    heard = F.scaled_dot_product_attention(text_q, all_k, all_v, attn_mask=mask)
    return seen.unflatten(0, (batch, frames)).transpose(2, 3).flatten(1, 2), heard.transpose(1, 2)


class FrameProcessor:
    """A diffusers attention processor that restricts joint attention as `frame_attention` does."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: Rotary,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`attention_mask` (B, 1, 1, N + L) is diffusers': true where a key is there."""

        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(2, (attn.heads, -1))

        double = attn.add_q_proj is not None
        query, key = project_video(attn, hidden_states, image_rotary_emb)
        video = (query, key, split(attn.to_v(hidden_states)))
        q, k, v = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj) if double else (attn.to_q, attn.to_k, attn.to_v)
        norm_q, norm_k = (attn.norm_added_q, attn.norm_added_k) if double else (attn.norm_q, attn.norm_k)
        words = encoder_hidden_states
        text = (norm_q(split(q(words))), norm_k(split(k(words))), split(v(words)))
        mask = attention_mask[:, 0, 0, hidden_states.shape[1] :]
        seen, heard = (x.flatten(2) for x in frame_attention(video, text, mask, self.frames))
        if not double:  # its output projection is the block's
            return seen, heard
        return attn.to_out[1](attn.to_out[0](seen)), attn.to_add_out(heard)


def kind_of(block: Any) -> SelfAttention:
    """Which form a block has."""
    return "frame" if isinstance(block.attn.processor, FrameProcessor) else "full"


def set_kind(block: Any, kind: SelfAttention, frames: int) -> None:
    """Give `block` the form 'full' or 'frame', in place. Its parameters stay."""
    block.attn.set_processor(FrameProcessor(frames) if kind == "frame" else HunyuanVideoAttnProcessor2_0())
