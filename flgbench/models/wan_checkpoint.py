"""A Wan checkpoint in diffusers layout: what its folder must hold. See `diffusers_folder`."""

from __future__ import annotations

from dataclasses import replace

from flgbench.errors import UsageError
from flgbench.models.diffusers_folder import OWN, DiffusersFolder
from flgbench.models.wan_presets import WanCheckpoint, denoiser_size

IMAGE_TEXT_LENGTH = 512  # diffusers' Wan attention splits image tokens from the text by this number


class Checkpoint(DiffusersFolder[WanCheckpoint]):
    """A folder with Wan 2.1 image-to-video or Wan 2.2 TI2V."""

    architecture = ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "in_channels", "out_channels")
    unused = "norm_added_q"  # in the published weights of Wan 2.1

    @property
    def per_token_times(self) -> bool:
        return bool(self.index.get("expand_timesteps"))

    @property
    def sees_image(self) -> bool:
        """Whether an image encoder's tokens go beside the text."""
        return bool(self.denoiser.get("image_dim"))

    @property
    def weighted(self) -> dict[str, str]:
        parts = {"transformer": "WanTransformer3DModel", "vae": "AutoencoderKLWan", "text_encoder": "umt5"}
        return parts | ({"image_encoder": "clip_vision_model"} if self.sees_image else {})

    @property
    def processors(self) -> dict[str, str]:
        return {"tokenizer": "tokenizer*"} | ({"image_processor": "preprocessor_config.json"} if self.sees_image else {})

    @property
    def parameters(self) -> int:
        return denoiser_size(self.denoiser).total

    def check_kind(self) -> None:
        kind = self.index.get("_class_name")
        # Wan 2.2 TI2V is published under the text-to-video pipeline, which makes both.
        if kind != "WanImageToVideoPipeline" and not (kind == "WanPipeline" and self.per_token_times):
            raise UsageError(
                f"{self.folder}: model_index.json says {kind}: not an image-to-video Wan model (WanImageToVideoPipeline, "
                f"or WanPipeline with expand_timesteps)"
            )
        if any(self.index.get("transformer_2") or ()):
            raise UsageError(f"{self.folder}: has two denoisers (Wan 2.2 A14B): a teacher here has one")

    def check_denoiser(self) -> None:
        vae, found = self.config("vae"), self.denoiser.get("in_channels", 16)
        latent = vae.get("z_dim", 16)
        mask = 0 if self.per_token_times else vae.get("scale_factor_temporal", 4)
        wanted = latent if self.per_token_times else 2 * latent + mask
        told = f"{latent}" if self.per_token_times else f"{wanted} = {latent} noisy + {mask} mask + {latent} first frame"
        if found != wanted:
            kind = ": a text-to-video model" if found == latent else ""
            raise UsageError(
                f"{self.folder / 'transformer'}: {found} input channels{kind}; image-to-video with this vae needs {told}"
            )

    def facts(self, published: WanCheckpoint) -> WanCheckpoint:
        found = super().facts(published)
        if self.sees_image and found.text_length != IMAGE_TEXT_LENGTH:
            raise UsageError(
                f"{self.folder / OWN}: text_length {found.text_length}: a denoiser with image tokens reads "
                f"{IMAGE_TEXT_LENGTH}"
            )
        return replace(found, per_token_times=self.per_token_times)
