"""What surrounds a Wan denoiser: autoencoder, text encoder and image encoder, each read when first needed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image
from torch import nn

from flgbench.errors import UsageError
from flgbench.models.base import Condition, Placement
from flgbench.models.denoiser import Denoiser
from flgbench.models.folded_conv import decode_in_two_chunks, encode_in_two_chunks, is_folded

TILED_ABOVE = 832 * 480  # pixels of a frame: larger ones go through the autoencoder in overlapping tiles
IMAGE_TOKENS = "image_tokens"  # name in `Condition.extras`


@dataclass
class Part:
    """A part of a checkpoint that `read` brings into memory when it is first asked for; copies of a model share it.

    `config`: the part's settings by name, known without reading its weights.
    """

    read: Callable[[], Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    loaded: Any = None

    def get(self) -> Any:
        if self.loaded is None:
            with torch.inference_mode(False):  # whoever asks first: weights read in inference mode could never be trained
                self.loaded = self.read()
        return self.loaded

    def release(self) -> None:
        """Give the memory back; the next `get` reads again."""
        self.loaded = None


def check_room(placement: Placement, parameters: int, what: Path) -> None:
    """Raise UsageError unless the weights fit what is free on a GPU."""
    needed = parameters * placement.dtype.itemsize
    if torch.device(placement.device).type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(placement.device)
    if needed > free:
        raise UsageError(
            f"{what}: {needed / 1e9:.1f} GB of weights in {placement.dtype}, and {free / 1e9:.1f} GB are free on "
            f"{placement.device}: a larger GPU, or a smaller --scale"
        )


def unchanged(module: Any) -> Any:
    return module


def part(
    cls: Any,
    folder: Path,
    dtype: torch.dtype,
    prepare: Callable[[Any], Any] = unchanged,
    before: Callable[[], None] = lambda: None,
) -> Part:
    """The diffusers or transformers model in `folder`, frozen, in eval mode, in `dtype`, after `prepare`.

    Reading it calls `before` first, and raises UsageError where the files lack some of its weights.
    """

    def read() -> Any:
        before()
        for library in (diffusers, transformers):  # their bars would run through ours
            library.utils.logging.disable_progress_bar()
        module, found = cls.from_pretrained(folder, use_safetensors=True, dtype=dtype, output_loading_info=True)
        if missing := sorted(found["missing_keys"]):  # the libraries would make them up
            raise UsageError(
                f"{folder}: {len(missing)} weights are missing, {missing[0]} for one: not a whole {cls.__name__}"
            )
        return prepare(module.requires_grad_(False).eval())

    # Older checkpoints leave out what their class has a default for.
    defaults = {name: p.default for name, p in inspect.signature(cls.__init__).parameters.items()}
    return Part(read, defaults | json.loads((folder / "config.json").read_text()))


class Held:
    """An attribute that is a module, or a `Part` that becomes one when it is looked at."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        if model is None:
            return self
        held = model.__dict__[self.name]
        return held.get() if isinstance(held, Part) else held

    def __set__(self, model: Any, value: Any) -> None:
        model.__dict__[self.name] = value


def placed(module: nn.Module, device: torch.device) -> Any:
    """`module` on `device`, moved only when it is not there."""
    return module if next(module.parameters()).device == device else module.to(device)


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

    def release_encoders(self) -> None:
        for held in vars(self).values():
            if isinstance(held, Part):
                held.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

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
