"""The wanx family: Wan image-to-video in diffusers layout (transformer, vae, text_encoder, tokenizer)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

from flgbench.models.base import Condition, PassTally, SelfAttention, VideoModel
from flgbench.models.folded_conv import decode_in_two_chunks, encode_in_two_chunks, fold_convolutions
from flgbench.models.wan_attention import kind_of, project, with_kind

# Beside config.json, not in it: diffusers warns of every key that its model does not know.
KEPT_BLOCKS = "kept_blocks.json"
SELF_ATTENTION = "self_attention.json"  # one of 'full', 'frame', 'none' a block; not there: all 'full'


class WanX(VideoModel):
    """A Wan image-to-video model: first-frame latents and a mask are concatenated to the 16 noisy channels.

    `clip_shape` is (frames, height, width) in pixels; `text_length` the number of caption tokens the model sees.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        vae: AutoencoderKLWan,
        text_encoder: UMT5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        clip_shape: tuple[int, int, int],
        text_length: int,
        negative_caption: str = "",
    ) -> None:
        self.transformer, self.vae = transformer, vae
        transformer.rope.float()  # diffusers keeps the angles in fp64, which makes every rotation fp64 on a CPU
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.text_length, self.negative_caption = text_length, negative_caption
        self.tally = PassTally()
        self.n_teacher_blocks = len(transformer.blocks)
        self._kept = tuple(range(len(transformer.blocks)))
        frames, height, width = clip_shape
        self.stride = (vae.config.scale_factor_temporal, vae.config.scale_factor_spatial)
        self.clip_shape = clip_shape
        self.latent_shape = (
            vae.config.z_dim,
            (frames - 1) // self.stride[0] + 1,
            height // self.stride[1],
            width // self.stride[1],
        )

    @classmethod
    def load(cls, folder: Path) -> WanX:
        """Load a diffusers folder with a `flgbench.json` beside its parts. Frozen, eval mode, fp32."""
        for library in (diffusers, transformers):  # their bars would run through ours
            library.utils.logging.disable_progress_bar()
        config = json.loads((folder / "flgbench.json").read_text())
        denoiser = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
        vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32)
        text_encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        for module in (denoiser, vae, text_encoder):
            module.requires_grad_(False).eval()
        return cls(
            denoiser,
            fold_convolutions(vae),
            text_encoder,
            AutoTokenizer.from_pretrained(folder / "tokenizer"),
            tuple(config["clip_shape"]),
            config["text_length"],
            config["negative_caption"],
        )

    def with_transformer(self, folder: Path) -> WanX:
        """The same encoders with the denoiser stored in `folder`."""
        denoiser = self._read(folder)
        denoiser.rope.float()
        twin = self._twin(denoiser.requires_grad_(False).eval())
        twin._kept = tuple(json.loads((folder / KEPT_BLOCKS).read_text()))
        return twin

    def _read(self, folder: Path) -> WanTransformer3DModel:
        file = folder / SELF_ATTENTION
        kinds = json.loads(file.read_text()) if file.exists() else []
        if all(kind == "full" for kind in kinds):
            return WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32)
        # `from_pretrained` knows only whole blocks: it would make up the weights that are gone.
        denoiser = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder))
        self._set_self_attention(denoiser, kinds)
        weights: dict[str, torch.Tensor] = {}
        for part in folder.glob("*.safetensors"):  # large models are saved in several
            weights |= load_file(part)
        denoiser.load_state_dict(weights)
        return denoiser

    def _twin(self, transformer: WanTransformer3DModel) -> WanX:
        twin = copy.copy(self)
        twin.transformer = transformer
        return twin

    @property
    def blocks(self) -> nn.ModuleList:
        return self.transformer.blocks

    @property
    def kept_blocks(self) -> tuple[int, ...]:
        return self._kept

    @contextmanager
    def _skipping(self, skip: Sequence[int]) -> Iterator[None]:
        blocks = self.transformer.blocks
        dropped = set(skip)
        self.transformer.blocks = nn.ModuleList(b for i, b in enumerate(blocks) if i not in dropped)
        try:
            yield
        finally:
            self.transformer.blocks = blocks

    def velocity(self, x: torch.Tensor, t: torch.Tensor, condition: Condition, skip: Sequence[int] = ()) -> torch.Tensor:
        if skip:
            with self._skipping(skip):
                return self.velocity(x, t, condition)
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.transformer.parameters())
        # A backward through frozen weights computes the gradient of the input only: one pass, not two.
        backward = 2 if trained else int(torch.is_grad_enabled() and x.requires_grad)
        self.tally.add(len(x) * len(self.blocks) / self.n_teacher_blocks * (1 + backward))
        return self.transformer(
            hidden_states=torch.cat([x, condition.image], dim=1),
            timestep=t * 1000,  # diffusers counts time from 0 to 1000
            encoder_hidden_states=condition.text,
            return_dict=False,
        )[0]

    def without_blocks(self, drop: Sequence[int]) -> WanX:
        dropped = set(drop)
        unknown = dropped - set(range(len(self.blocks)))
        if unknown:
            raise ValueError(f"no block at position {sorted(unknown)}: the model has {len(self.blocks)} blocks")
        twin = self._twin(self.copy().transformer)
        twin.transformer.blocks = nn.ModuleList(b for i, b in enumerate(twin.blocks) if i not in dropped)
        twin._kept = tuple(k for i, k in enumerate(self._kept) if i not in dropped)
        return twin

    @property
    def self_attention(self) -> tuple[SelfAttention, ...]:
        return tuple(kind_of(block) for block in self.blocks)

    def with_self_attention(self, kinds: Sequence[SelfAttention]) -> WanX:
        twin = self.copy()
        self._set_self_attention(twin.transformer, kinds)
        return twin

    def _set_self_attention(self, transformer: WanTransformer3DModel, kinds: Sequence[SelfAttention]) -> None:
        if len(kinds) != len(transformer.blocks):
            raise ValueError(f"{len(kinds)} kinds of self-attention for {len(transformer.blocks)} blocks")
        pairs = zip(transformer.blocks, kinds, strict=True)
        transformer.blocks = nn.ModuleList(with_kind(block, kind, self.token_frames) for block, kind in pairs)

    @property
    def token_frames(self) -> int:
        return self.latent_shape[1] // self.transformer.config.patch_size[0]

    @contextmanager
    def listening_to_self_attention(self, listener: Callable[[int, torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
        def hook(position: int) -> Callable[[Any, tuple[Any, ...]], None]:
            def listen(attention: Any, inputs: tuple[Any, ...]) -> None:
                tokens, _, _, rotary = inputs
                query, key, _ = project(attention, tokens, rotary)
                listener(position, query, key)

            return listen

        layers: list[tuple[int, Any]] = [(i, b) for i, b in enumerate(self.blocks) if kind_of(b) != "none"]
        handles = [block.attn1.register_forward_pre_hook(hook(position)) for position, block in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def save(self, folder: Path) -> None:
        self.transformer.register_to_config(num_layers=len(self.blocks))
        self.transformer.save_pretrained(folder)
        (folder / KEPT_BLOCKS).write_text(json.dumps(list(self._kept)))
        (folder / SELF_ATTENTION).write_text(json.dumps(list(self.self_attention)))

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, -1, 1, 1, 1)
        return torch.tensor(self.vae.config.latents_mean).view(shape), torch.tensor(self.vae.config.latents_std).view(shape)

    @torch.no_grad()
    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics()
        return (encode_in_two_chunks(self.vae, pixels) - mean) / std

    def encode_video(self, video: torch.Tensor) -> torch.Tensor:
        return self._encode(video.permute(0, 4, 1, 2, 3).float().div(127.5).sub(1))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics()
        pixels = decode_in_two_chunks(self.vae, latents * std + mean)
        return pixels.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=self.text_length, truncation=True, return_tensors="pt"
        )
        hidden = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return hidden * tokens.attention_mask[..., None]

    def remarks(self, caption: str) -> list[str]:
        count = len(self.tokenizer(caption).input_ids)
        words = {w: self.tokenizer(w, add_special_tokens=False).input_ids for w in caption.split()}
        unknown = [word for word, ids in words.items() if self.tokenizer.unk_token_id in ids]
        return [f"the model does not know: {', '.join(unknown)}"] * bool(unknown) + [
            f"the model reads the first {self.text_length} of the prompt's {count} tokens"
        ] * (count > self.text_length)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        # Wan 2.1 encodes the first frame followed by grey frames, and marks with 4 mask channels which pixels are given.
        frames, height, width = self.clip_shape
        pixels = torch.zeros(len(images), 3, frames, height, width)
        pixels[:, :, 0] = images.permute(0, 3, 1, 2).float().div(127.5).sub(1)
        latents = self._encode(pixels)
        mask = torch.zeros(len(images), self.stride[0], *latents.shape[2:])
        mask[:, :, 0] = 1
        return torch.cat([mask, latents], dim=1)

    def condition(self, images: torch.Tensor, captions: Sequence[str]) -> Condition:
        return Condition(self.encode_text(captions), self.encode_text([self.negative_caption]), self.encode_image(images))
