"""The hunyuan family: HunyuanVideo image-to-video in diffusers layout.

Of its two published forms this is `token_replace` (hunyuanvideo-community/HunyuanVideo-I2V): the tokens of the first latent
frame are the given image's, with a time of 0. The other, `latent_concat`, has the stock pipeline cut four frames off
every clip, so that a saved folder could not give 17 frames back.

Two kinds of block. A *double* block has weights of its own for the video and for the text, which attend to each other;
a *single* block has one set for both. `blocks` lists the doubles, then the singles. A block costs about the same compute
either way (12 width^2 multiply-adds a token) but a double has 2.4 times the parameters: kept parameters and kept blocks,
which are kept compute, are two numbers.

Guidance. HunyuanVideo is guidance-distilled: the network is told a scale g and answers, in one pass, what guidance with
w = g would have made of two, F_g(c) = v(c0) + g (v(c) - v(c0)). Therefore
- the *teacher's guidance* is the embedded scale: 50 steps are 50 passes (`SamplerSettings.embedded_guidance`);
- *CFG* extrapolates between two passes that are told g = 1, the plain conditional velocity and that of the negative
  caption (`SamplerSettings.guidance_scale`), where an unconditional branch exists, as in the tiny teacher. With both,
  the scales multiply: F_g(c0) = v(c0), so v(c0) + w (F_g(c) - v(c0)) has the scale w g;
- *beta1* of a method is CFG's w: trainings tell the network g = 1, which is what a condition says unless asked.
  Students learn guidance into their weights and are sampled in one pass at g = 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import diffusers
import torch
import transformers
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPTextModel,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from flgbench.errors import UsageError
from flgbench.models.base import Condition, PassTally, Placement, SelfAttention
from flgbench.models.denoiser import KEPT_BLOCKS, SELF_ATTENTION, Denoiser, with_given_frame
from flgbench.models.hunyuan_attention import kind_of, project_video, set_kind
from flgbench.models.hunyuan_vae import decode_whole, encode_whole, fold_convolutions

TEMPLATE_TAIL = 4  # tokens behind the caption that the stock pipeline cuts out again
IMAGE_INTERLEAVE = 4  # of the image's tokens every fourth is read: the stock pipeline's choice for `token_replace`
ON_CPU = Placement()


class TextReader:
    """Captions beside their first frame to what the denoiser reads, by the stock pipeline's own code.

    Negative captions too: the stock pipeline itself reads twice as many of the image's tokens beside those, which its
    `negative_prompt_embeds` avoids.

    `template` are the stock pipeline's `prompt_template` settings; `length` the number of caption tokens that are read.
    """

    def __init__(
        self,
        text_encoder: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder_2: CLIPTextModel,
        tokenizer_2: PreTrainedTokenizerBase,
        image_processor: CLIPImageProcessor,
        template: Mapping[str, Any],
        length: int,
    ) -> None:
        self.text_encoder, self.tokenizer, self.template, self.length = text_encoder, tokenizer, dict(template), length
        self.parts = {
            "text_encoder": text_encoder,
            "tokenizer": tokenizer,
            "text_encoder_2": text_encoder_2,
            "tokenizer_2": tokenizer_2,
            "image_processor": image_processor,
        }
        self._stock = HunyuanVideoImageToVideoPipeline(transformer=None, vae=None, scheduler=None, **self.parts)

    def read(self, images: torch.Tensor, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings (B, L, D), zero behind each caption's end; their mask (B, L); pooled embeddings (B, P).

        images (B, H, W, 3) uint8. L is the number of image tokens that are read, then `length`.
        """
        # Cut before the template is put around it: cut after, the stock pipeline would lose the template's end.
        cut = [self.tokenizer.decode(self.tokenizer(c).input_ids[: self.length]) for c in captions]
        text, pooled, mask = self._stock.encode_prompt(
            list(images.permute(0, 3, 1, 2)),
            cut,
            prompt_template=self.template,
            device=self.text_encoder.device,
            max_sequence_length=self.length + TEMPLATE_TAIL,
            image_embed_interleave=IMAGE_INTERLEAVE,
        )
        return text * mask[..., None], mask, pooled


class Hunyuan(Denoiser):
    """A HunyuanVideo image-to-video model. `clip_shape` is (frames, height, width) in pixels."""

    lists = {"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"}
    denoiser_class: ClassVar[type[HunyuanVideoTransformer3DModel]] = HunyuanVideoTransformer3DModel

    def __init__(
        self,
        transformer: HunyuanVideoTransformer3DModel,
        vae: AutoencoderKLHunyuanVideo,
        reader: TextReader,
        clip_shape: tuple[int, int, int],
        negative_caption: str = "",
    ) -> None:
        self.transformer, self.vae, self.reader = transformer, vae, reader
        self.tokenizer, self.text_length = reader.tokenizer, reader.length
        self.clip_shape, self.negative_caption = clip_shape, negative_caption
        self.tally = PassTally()
        self.n_teacher_blocks = len(self.blocks)
        self._kept = tuple(range(self.n_teacher_blocks))
        frames, height, width = clip_shape
        self.latent_shape = (
            vae.config.latent_channels,
            (frames - 1) // vae.config.temporal_compression_ratio + 1,
            height // vae.config.spatial_compression_ratio,
            width // vae.config.spatial_compression_ratio,
        )

    @classmethod
    def load(cls, folder: Path, placement: Placement = ON_CPU) -> Self:
        """Load a diffusers folder with a `flgbench.json` beside its parts. Frozen, eval mode.

        `placement` is the denoiser's; the encoders, which are small, stay on the CPU in fp32.
        """
        for library in (diffusers, transformers):  # their bars would run through ours
            library.utils.logging.disable_progress_bar()
        config = json.loads((folder / "flgbench.json").read_text())
        denoiser = cls.denoiser_class.from_pretrained(folder / "transformer", dtype=placement.dtype)
        vae = AutoencoderKLHunyuanVideo.from_pretrained(folder / "vae", dtype=torch.float32)
        llava = LlavaForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        clip = CLIPTextModel.from_pretrained(folder / "text_encoder_2", dtype=torch.float32)
        for module in (denoiser, vae, llava, clip):
            module.requires_grad_(False).eval()
        reader = TextReader(
            llava,
            AutoTokenizer.from_pretrained(folder / "tokenizer"),
            clip,
            AutoTokenizer.from_pretrained(folder / "tokenizer_2"),
            CLIPImageProcessor.from_pretrained(folder / "image_processor"),
            config["prompt_template"],
            config["text_length"],
        )
        denoiser = denoiser.to(placement.device)
        return cls(denoiser, fold_convolutions(vae), reader, tuple(config["clip_shape"]), config["negative_caption"])

    def with_transformer(self, folder: Path) -> Self:
        """The same encoders with the denoiser stored in `folder`."""
        denoiser = self.denoiser_class.from_pretrained(folder, dtype=self.dtype).to(self.device)
        twin = self._twin(denoiser.requires_grad_(False).eval())
        for block, kind in zip(twin.blocks, json.loads((folder / SELF_ATTENTION).read_text()), strict=True):
            set_kind(block, kind, self.token_frames)
        twin._kept = tuple(json.loads((folder / KEPT_BLOCKS).read_text()))
        return twin

    @property
    def device(self) -> torch.device:
        return self.transformer.x_embedder.proj.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.x_embedder.proj.weight.dtype

    def release_encoders(self) -> None:
        """Nothing to free: they are read with the model."""

    @property
    def block_kinds(self) -> tuple[str, ...]:
        doubles, singles = self.transformer.transformer_blocks, self.transformer.single_transformer_blocks
        return ("double",) * len(doubles) + ("single",) * len(singles)

    def block_tokens(self, output: Any) -> torch.Tensor:
        return output[0]

    def _velocity(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        condition = condition.to(self.device)
        predicted = self.transformer(
            hidden_states=torch.cat([condition.image, x[:, :, 1:]], dim=2).to(self.dtype),
            timestep=t * 1000,  # diffusers counts time from 0 to 1000
            return_dict=False,
            **self._arguments(condition),
        )[0].float()
        return with_given_frame(predicted, x, t, condition.image)

    def _arguments(self, condition: Condition) -> dict[str, Any]:
        """What the network's forward is told besides latents and times."""
        extras, guided = condition.extras, self.transformer.config.guidance_embeds
        return {
            "encoder_hidden_states": condition.text.to(self.dtype),
            "encoder_attention_mask": extras["text_mask"],
            "pooled_projections": extras["pooled"].to(self.dtype),
            "guidance": extras["guidance"] * 1000 if guided else None,  # in thousandths
        }

    @property
    def self_attention(self) -> tuple[SelfAttention, ...]:
        return tuple(kind_of(block) for block in self.blocks)

    def with_self_attention(self, kinds: Sequence[SelfAttention]) -> Hunyuan:
        if len(kinds) != len(self.blocks):
            raise ValueError(f"{len(kinds)} kinds of self-attention for {len(self.blocks)} blocks")
        if "none" in kinds:
            raise UsageError(
                "this family's blocks cannot lose their self-attention: text and video share it, so no caption would "
                "reach the video; restrict it to frames instead"
            )
        twin = self.copy()
        for block, kind in zip(twin.blocks, kinds, strict=True):
            set_kind(block, kind, self.token_frames)
        return twin

    @property
    def token_frames(self) -> int:
        return self.latent_shape[1] // self.transformer.config.patch_size_t

    @contextmanager
    def listening_to_self_attention(self, listener: Callable[[int, torch.Tensor, torch.Tensor], None]) -> Iterator[None]:
        """As the base class says, for the video's tokens only: those of the text belong to no frame."""

        def hook(position: int) -> Callable[[Any, tuple[Any, ...], dict[str, Any]], None]:
            def listen(attention: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
                listener(position, *project_video(attention, named["hidden_states"], named["image_rotary_emb"]))

            return listen

        layers: list[tuple[int, Any]] = list(enumerate(self.blocks))
        handles = [b.attn.register_forward_pre_hook(hook(position), with_kwargs=True) for position, b in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def stock_pipeline(self, scheduler: Any) -> HunyuanVideoImageToVideoPipeline:
        return HunyuanVideoImageToVideoPipeline(
            transformer=self.transformer, vae=self.vae, scheduler=scheduler, **self.reader.parts
        )

    @torch.no_grad()
    def encode_video(self, video: torch.Tensor) -> torch.Tensor:
        return encode_whole(self.vae, video.permute(0, 4, 1, 2, 3).float().div(127.5).sub(1))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        pixels = decode_whole(self.vae, latents.cpu())
        return pixels.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)

    def encode_text(self, captions: Sequence[str]) -> torch.Tensor:
        """As the base class says, beside a black image: how the stock pipeline reads a negative caption."""
        return self._read_beside_black(captions)[0]

    @torch.no_grad()
    def _read_beside_black(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        _, height, width = self.clip_shape
        return self.reader.read(torch.zeros(len(captions), height, width, 3, dtype=torch.uint8), captions)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, 1, H', W'): the first latent frame itself."""
        return self.encode_video(images[:, None])

    @torch.no_grad()
    def condition(self, images: torch.Tensor, captions: Sequence[str]) -> Condition:
        text, mask, pooled = self.reader.read(images, captions)
        negative, negative_mask, negative_pooled = self._read_beside_black([self.negative_caption])
        extras = {"text_mask": mask, "pooled": pooled, "guidance": torch.ones(len(images))}
        return Condition(
            text,
            negative,
            self.encode_image(images),
            extras,
            {"text_mask": negative_mask, "pooled": negative_pooled},
        )
