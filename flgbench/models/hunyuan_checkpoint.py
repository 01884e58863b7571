"""A HunyuanVideo checkpoint in diffusers layout: what its folder must hold. See `diffusers_folder`."""

from __future__ import annotations

from flgbench.errors import UsageError
from flgbench.models.diffusers_folder import DiffusersFolder
from flgbench.models.hunyuan_presets import HunyuanCheckpoint, denoiser_size

PIPELINE = "HunyuanVideoImageToVideoPipeline"


class HunyuanFolder(DiffusersFolder[HunyuanCheckpoint]):
    """A folder with HunyuanVideo image-to-video, in its form `token_replace`."""

    architecture = (
        "num_layers",
        "num_single_layers",
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "out_channels",
        "guidance_embeds",
    )
    weighted = {
        "transformer": "HunyuanVideoTransformer3DModel",
        "vae": "AutoencoderKLHunyuanVideo",
        "text_encoder": "llava",
        "text_encoder_2": "clip_text_model",
    }
    processors = {
        "tokenizer": "tokenizer*",
        "tokenizer_2": "tokenizer*",
        "image_processor": "preprocessor_config.json",
    }

    @property
    def parameters(self) -> int:
        return denoiser_size(self.denoiser).total

    def check_kind(self) -> None:
        kind = self.index.get("_class_name")
        if kind != PIPELINE:
            raise UsageError(
                f"{self.folder}: model_index.json says {kind}: not an image-to-video HunyuanVideo model ({PIPELINE})"
            )

    def check_denoiser(self) -> None:
        form = self.denoiser.get("image_condition_type")
        if form == "latent_concat":
            raise UsageError(
                f"{self.folder / 'transformer'}: its image is concatenated (latent_concat, 33 channels), and the stock "
                f"pipeline cuts frames off such clips: take the 16-channel model (token_replace)"
            )
        if form != "token_replace":
            raise UsageError(
                f"{self.folder / 'transformer'}: image_condition_type is {form}: a text-to-video model; image-to-video "
                f"needs token_replace"
            )
        found, latent = self.denoiser.get("in_channels", 16), self.config("vae").get("latent_channels", 16)
        if found != latent:
            raise UsageError(f"{self.folder / 'transformer'}: {found} input channels; with this vae it needs {latent}")
