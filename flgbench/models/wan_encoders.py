"""What surrounds a Wan denoiser: autoencoder, text encoder and image encoder, each read when first needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from flgbench.models.base import Condition
from flgbench.models.denoiser import Denoiser
from flgbench.models.folded_conv import decode_in_two_chunks, encode_in_two_chunks, is_folded
from flgbench.models.parts import Held, placed

TILED_ABOVE = 832 * 480  # pixels of a frame: larger ones go through the autoencoder in overlapping tiles
IMAGE_TOKENS = "image_tokens"  # name in `Condition.extras`


class WanEncoders(Denoiser):
    """The part of a Wan model that is not its denoiser: pixels and captions to what the denoiser reads, and back.

    `clip_shape` is (frames, height, width) in pixels; `text_length` the number of caption tokens the model sees.
    Everything runs on the model's `device`, in each part's own dtype; latents are fp32, embeddings keep their encoder's
    dtype. `per_token_times`: see `wan_presets.WanCheckpoint`.
    """

    vae, text_encoder, tokenizer, image_encoder, image_processor = Held(), Held(), Held(), Held(), Held()

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        image_encoder: Any,
        image_processor: Any,
        clip_shape: tuple[int, int, int],
        text_length: int,
        negative_caption: str,
        per_token_times: bool,
    ) -> None:
        self.vae, self.text_encoder, self.tokenizer = vae, text_encoder, tokenizer
        self.image_encoder, self.image_processor = image_encoder, image_processor
        self.text_length, self.negative_caption = text_length, negative_caption
        self.clip_shape, self.per_token_times = clip_shape, per_token_times
        config = vae.config
        self.stride = (config["scale_factor_temporal"], config["scale_factor_spatial"])
        frames, height, width = clip_shape
        self.latent_shape = (
            config["z_dim"],
            (frames - 1) // self.stride[0] + 1,
            height // self.stride[1],
            width // self.stride[1],
        )

    def _autoencoder(self) -> Any:
        vae = placed(self.vae, self.device)
        if self.clip_shape[1] * self.clip_shape[2] > TILED_ABOVE and not vae.use_tiling:
            vae.enable_tiling()
        return vae

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        config = vars(self)["vae"].config
        mean, std = (torch.tensor(config[name], device=self.device) for name in ("latents_mean", "latents_std"))
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        vae, (mean, std) = self._autoencoder(), self._statistics()
        pixels = pixels.to(vae.dtype)
        latents = encode_in_two_chunks(vae, pixels) if is_folded(vae) else vae.encode(pixels).latent_dist.mode()
        return (latents.float() - mean) / std

    def encode_video(self, video: torch.Tensor) -> torch.Tensor:
        return self._encode(video.to(self.device).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        vae, (mean, std) = self._autoencoder(), self._statistics()
        latents = (latents.to(self.device).float() * std + mean).to(vae.dtype)
        pixels = decode_in_two_chunks(vae, latents) if is_folded(vae) else vae.decode(latents).sample
        return pixels.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).cpu()

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenizer(
            list(captions), padding="max_length", max_length=self.text_length, truncation=True, return_tensors="pt"
        ).to(self.device)
        encoder = placed(self.text_encoder, self.device)
        hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return hidden * tokens.attention_mask[..., None]

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        given = images.to(self.device).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        if self.per_token_times:  # Wan 2.2 TI2V is given the frame itself: it takes the place of the first noisy one
            return self._encode(given[:, :, None])
        # Wan 2.1 encodes the first frame followed by grey frames, and marks with 4 mask channels which pixels are given.
        frames, height, width = self.clip_shape
        pixels = given.new_zeros(len(images), 3, frames, height, width)
        pixels[:, :, 0] = given
        latents = self._encode(pixels)
        mask = latents.new_zeros(len(images), self.stride[0], *latents.shape[2:])
        mask[:, :, 0] = 1
        return torch.cat([mask, latents], dim=1)

    @torch.no_grad()
    def image_tokens(self, images: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) uint8 first frames -> (B, L, D) of the image encoder's last layer but one (Wan 2.1)."""
        encoder = placed(self.image_encoder, self.device)
        # As pictures, because the processor resizes pictures and tensors by different code.
        pictures = [Image.fromarray(image) for image in images.cpu().numpy()]
        pixels = self.image_processor(images=pictures, return_tensors="pt").pixel_values.to(self.device, encoder.dtype)
        return encoder(pixels, output_hidden_states=True).hidden_states[-2]

    def condition(self, images: torch.Tensor, captions: Sequence[str]) -> Condition:
        extras = {IMAGE_TOKENS: self.image_tokens(images)} if vars(self)["image_encoder"] is not None else {}
        text, negative = self.encode_text(captions), self.encode_text([self.negative_caption])
        return Condition(text, negative, self.encode_image(images), extras)
