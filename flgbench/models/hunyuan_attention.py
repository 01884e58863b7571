"""Joint attention of a HunyuanVideo block in two forms: over everything (diffusers' own), or within a latent frame.

Video tokens come first, in frame-major order, then the text's. Heads follow the tokens: (B, N, heads, D).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import HunyuanVideoTransformer3DModel
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0

from flgbench.models.base import SelfAttention
from flgbench.models.cpu_kernels import normalise, rotate, turns_of, with_fast_gelu

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, (N, D), every angle twice
Projected = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def prepared(transformer: HunyuanVideoTransformer3DModel) -> HunyuanVideoTransformer3DModel:
    """`transformer` so that it computes no needless padding, in place.

    The text is cut where the longest caption's mask ends, and a single clip's attention is given no mask, which the fastest
    kernels do not take. In a batch shorter captions are masked, as diffusers does. On a CPU see also `cpu_kernels`.
    """
    if transformer.x_embedder.proj.weight.device.type == "cpu":
        with_fast_gelu(transformer)
    transformer.register_forward_pre_hook(_cut_text, with_kwargs=True)
    for block in transformer.context_embedder.token_refiner.refiner_blocks:
        block.attn.set_processor(RefinerProcessor())
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        block.attn.set_processor(JointProcessor())
    return transformer


def _cut_text(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    names = ("encoder_hidden_states", "encoder_attention_mask")
    length = int(kwargs["encoder_attention_mask"].sum(1).max())
    return args, kwargs | {name: kwargs[name][:, :length] for name in names}


def _unless_alone(mask: torch.Tensor | None, clips: int) -> torch.Tensor | None:
    return None if clips == 1 else mask


class RefinerProcessor(AttnProcessor2_0):
    """Diffusers' own for the text alone, see `prepared`."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **more: Any,
    ) -> torch.Tensor:
        mask = _unless_alone(attention_mask, len(hidden_states))
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, **more)


class JointProcessor(HunyuanVideoAttnProcessor2_0):
    """Diffusers' own for video and text, see `prepared`; on a CPU the same numbers from fewer kernels."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Any:
        mask = _unless_alone(attention_mask, len(hidden_states))
        if hidden_states.device.type != "cpu" or image_rotary_emb is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, mask, image_rotary_emb)
        projected = project_jointly(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        query, key, value = (x.transpose(1, 2) for x in projected)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        video, text = out.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        if attn.add_q_proj is None:  # its output projection is the block's
            return video, text
        return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text)


def project_jointly(attention: Any, video: torch.Tensor, text: torch.Tensor, rotary: Rotary) -> Projected:
    """Query, key and value (B, N + L, heads, D) of video (B, N, width) and text (B, L, width), after qk-norm; those of the
    video also after rotary embedding."""

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (attention.heads, -1))

    a, places = attention, video.shape[1]
    double = a.add_q_proj is not None
    tokens = video if double else torch.cat([video, text], dim=1)
    query, key, value = split(a.to_q(tokens)), split(a.to_k(tokens)), split(a.to_v(tokens))
    query, key = normalise(query, a.norm_q), normalise(key, a.norm_k)
    if double:
        words = normalise(split(a.add_q_proj(text)), a.norm_added_q), normalise(split(a.add_k_proj(text)), a.norm_added_k)
        value = torch.cat([value, split(a.add_v_proj(text))], dim=1)
    else:
        words = query[:, places:], key[:, places:]
    turns = turns_of(rotary)[:, None]
    query = torch.cat([rotate(query[:, :places], turns), words[0]], dim=1)
    key = torch.cat([rotate(key[:, :places], turns), words[1]], dim=1)
    return query, key, value


def project_video(attention: Any, tokens: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key (B, N, heads, D) of the video tokens (B, N, width), after qk-norm and rotary embedding."""
    query, key = (x.unflatten(2, (attention.heads, -1)) for x in (attention.to_q(tokens), attention.to_k(tokens)))
    turns = turns_of(rotary)[:, None]
    return rotate(normalise(query, attention.norm_q), turns), rotate(normalise(key, attention.norm_k), turns)


def frame_attention(
    video: Projected, text: Projected, text_mask: torch.Tensor | None, frames: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query, key and value of video (B, N, heads, D) and text (B, L, heads, D) to the two attention outputs.

    A video token sees its own frame, frame 0 (the given image) and the text; a text token sees everything. `text_mask`
    (B, L) tells which text tokens are there; none: all.
    """
    q, k, v = (x.unflatten(1, (frames, -1)).transpose(2, 3) for x in video)  # (B, T, heads, n, D)
    text_q, text_k, text_v = (x.transpose(1, 2) for x in text)  # (B, heads, L, D)

    def visible(own: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Of the frames after the first, one in place of a clip."""
        words = words[:, None].expand(-1, frames - 1, -1, -1, -1)
        return torch.cat([own[:, :1].expand_as(own[:, 1:]), own[:, 1:], words], dim=3).flatten(0, 1)

    first_k, first_v = (torch.cat([x[:, 0], y], dim=2) for x, y in ((k, text_k), (v, text_v)))
    first = _attend(q[:, 0], first_k, first_v, text_mask)
    each = text_mask if text_mask is None else text_mask.repeat_interleave(frames - 1, dim=0)
    later = _attend(q[:, 1:].flatten(0, 1), visible(k, text_k), visible(v, text_v), each)
    seen = torch.cat([first[:, None], later.unflatten(0, (len(q), frames - 1))], dim=1)
    all_k, all_v = (torch.cat([x.transpose(1, 2), y], dim=2) for x, y in ((video[1], text_k), (video[2], text_v)))
    heard = _attend(text_q, all_k, all_v, text_mask)
    return seen.transpose(2, 3).flatten(1, 2), heard.transpose(1, 2)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, text_mask: torch.Tensor | None) -> torch.Tensor:
    """Attention (B, heads, tokens, D) on keys of which the last are the text's."""
    mask = None
    if text_mask is not None:
        before = text_mask.new_ones(len(text_mask), k.shape[2] - text_mask.shape[1], dtype=torch.bool)
        mask = torch.cat([before, text_mask.bool()], dim=1)[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


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
        mask = _unless_alone(attention_mask[:, 0, 0, hidden_states.shape[1] :], len(words))
        seen, heard = (x.flatten(2) for x in frame_attention(video, text, mask, self.frames))
        if not double:  # its output projection is the block's
            return seen, heard
        return attn.to_out[1](attn.to_out[0](seen)), attn.to_add_out(heard)


def kind_of(block: Any) -> SelfAttention:
    """Which form a block has."""
    return "frame" if isinstance(block.attn.processor, FrameProcessor) else "full"


def set_kind(block: Any, kind: SelfAttention, frames: int) -> None:
    """Give `block` the form 'full' or 'frame', in place. Its parameters stay."""
    block.attn.set_processor(FrameProcessor(frames) if kind == "frame" else JointProcessor())
