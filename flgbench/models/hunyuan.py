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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoImageToVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPTextModel, LlavaForConditionalGeneration

from flgbench.errors import UsageError
from flgbench.models.base import Condition, PassTally, Placement, SelfAttention, StockCall
from flgbench.models.denoiser import KEPT_BLOCKS, SELF_ATTENTION, Denoiser, with_given_frame
from flgbench.models.diffusers_folder import ClipSettings
from flgbench.models.hunyuan_attention import kind_of, prepared, project_video, set_kind
from flgbench.models.hunyuan_checkpoint import HunyuanFolder
from flgbench.models.hunyuan_presets import TEMPLATE_TAIL
from flgbench.models.hunyuan_reader import TextReader
from flgbench.models.hunyuan_vae import decode, encode, fold_convolutions, is_folded
from flgbench.models.parts import Held, Part, check_room, part, placed, unchanged

if TYPE_CHECKING:
    from flgbench.sampling import SamplerSettings

START = 0.999  # share of noise that the stock pipeline starts from
ON_CPU = Placement()


class Hunyuan(Denoiser):
    """A HunyuanVideo image-to-video model. `clip_shape` is (frames, height, width) in pixels."""

    lists = {"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"}
    entrance = "x_embedder.proj"
    vae, tokenizer = Held(), Held()
    denoiser_class: ClassVar[type[HunyuanVideoTransformer3DModel]] = HunyuanVideoTransformer3DModel

    def __init__(
        self,
        transformer: HunyuanVideoTransformer3DModel | Part,
        vae: AutoencoderKLHunyuanVideo | Part,
        reader: TextReader,
        clip_shape: tuple[int, int, int],
        negative_caption: str = "",
        *,
        placement: Placement = ON_CPU,
    ) -> None:
        self.placement, self.reader, self.text_length = placement, reader, reader.length
        self.transformer, self.vae, self.tokenizer = transformer, vae, vars(reader)["tokenizer"]
        if not isinstance(transformer, Part):
            prepared(transformer)
        self.clip_shape, self.negative_caption = clip_shape, negative_caption
        self.tally = PassTally()
        self.n_teacher_blocks = sum(transformer.config[key] for key in self.lists.values())
        self._kept = tuple(range(self.n_teacher_blocks))
        config = vae.config
        self.stride = (config["temporal_compression_ratio"], config["spatial_compression_ratio"])
        frames, height, width = clip_shape
        self.latent_shape = (
            config["latent_channels"],
            (frames - 1) // self.stride[0] + 1,
            height // self.stride[1],
            width // self.stride[1],
        )

    @classmethod
    def load(cls, folder: Path, placement: Placement = ON_CPU, clips: ClipSettings | None = None) -> Self:
        """The diffusers folder with `clips`, by default those of its flgbench.json. Frozen, eval mode.

        The prompt template is the stock pipeline's unless the flgbench.json names another. Denoiser and text encoders are
        in the dtype of `placement`, the autoencoder in fp32; it takes clips whole where `clips` are the folder's own, see
        `hunyuan_vae`. Raises UsageError, when the denoiser is read, where it does not fit the device.
        """
        found, whole = HunyuanFolder(folder), clips is None
        clips = clips or ClipSettings.of(found.own)

        def to_device(transformer: Any) -> Any:
            return prepared(transformer.to(placement.device))

        def fits() -> None:
            check_room(placement, found.parameters, folder / "transformer")

        reader = TextReader(
            part(LlavaForConditionalGeneration, folder / "text_encoder", placement.dtype),
            Part(lambda: AutoTokenizer.from_pretrained(folder / "tokenizer")),
            part(CLIPTextModel, folder / "text_encoder_2", placement.dtype),
            Part(lambda: AutoTokenizer.from_pretrained(folder / "tokenizer_2")),
            Part(lambda: CLIPImageProcessor.from_pretrained(folder / "image_processor")),
            found.own.get("prompt_template", DEFAULT_PROMPT_TEMPLATE),
            clips.text_length,
        )
        return cls(
            part(cls.denoiser_class, folder / "transformer", placement.dtype, to_device, before=fits),
            part(AutoencoderKLHunyuanVideo, folder / "vae", torch.float32, fold_convolutions if whole else unchanged),
            reader,
            clips.clip,
            clips.negative_caption,
            placement=placement,
        )

    def with_transformer(self, folder: Path) -> Self:
        """The same encoders with the denoiser stored in `folder`."""
        denoiser = self.denoiser_class.from_pretrained(folder, dtype=self.dtype).to(self.device)
        twin = self._twin(prepared(denoiser).requires_grad_(False).eval())
        for block, kind in zip(twin.blocks, json.loads((folder / SELF_ATTENTION).read_text()), strict=True):
            set_kind(block, kind, self.token_frames)
        twin._kept = tuple(json.loads((folder / KEPT_BLOCKS).read_text()))
        return twin

    def held(self) -> list[Any]:
        return [*super().held(), *vars(self.reader).values()]

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
            "guidance": extras["guidance"].to(self.dtype) * 1000 if guided else None,  # in thousandths
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

    def _autoencoder(self) -> Any:
        vae = placed(self.vae, self.device)
        if not is_folded(vae):
            vae.enable_tiling()  # which frames no larger than a tile do not notice
        return vae

    def stock_call(self, sampler: SamplerSettings) -> StockCall:
        if sampler.guidance_scale != 1:
            raise UsageError(
                "a sampler with CFG cannot be exported: the stock pipeline reads more of the image beside a negative prompt "
                "than beside a prompt; `flgbench sample` can use it"
            )
        frames, height, width = self.clip_shape
        arguments = {
            "height": height,
            "width": width,
            "num_frames": frames,
            "num_inference_steps": sampler.num_inference_steps,
            "guidance_scale": sampler.embedded_guidance or 1.0,
            "prompt_template": self.reader.template,
            "max_sequence_length": self.text_length + TEMPLATE_TAIL,
        }
        # Longer clips than 16 frames are decoded in blended pieces otherwise.
        return StockCall(arguments, ("pipe.vae.use_framewise_decoding = False",), even_times=True)

    def stock_noise(self, draw: int, condition: Condition, generator: torch.Generator) -> torch.Tensor:
        """A thousandth of the image is mixed into the start, and later no noise is drawn for the given frame."""
        channels, frames, height, width = self.latent_shape
        if draw == 0:
            return START * super().stock_noise(0, condition, generator) + (1 - START) * condition.image.cpu()
        later = torch.randn(1, channels, frames - 1, height, width, generator=generator)
        return torch.cat([torch.zeros(1, channels, 1, height, width), later], dim=2)

    @torch.no_grad()
    def encode_video(self, video: torch.Tensor) -> torch.Tensor:
        pixels = video.to(self.device).permute(0, 4, 1, 2, 3).float().div(127.5).sub(1)
        return encode(self._autoencoder(), pixels)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        pixels = decode(self._autoencoder(), latents.to(self.device).float())
        return pixels.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).cpu()

    def encode_text(self, captions: Sequence[str]) -> torch.Tensor:
        """As the base class says, beside a black image: how the stock pipeline reads a negative caption."""
        return self._read_beside_black(captions)[0]

    @torch.no_grad()
    def _read_beside_black(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        _, height, width = self.clip_shape
        black = torch.zeros(len(captions), height, width, 3, dtype=torch.uint8)
        return self.reader.read(black, captions, self.device)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, 1, H', W'): the first latent frame itself."""
        return self.encode_video(images[:, None])

    @torch.no_grad()
    def condition(self, images: torch.Tensor, captions: Sequence[str]) -> Condition:
        text, mask, pooled = self.reader.read(images, captions, self.device)
        negative, negative_mask, negative_pooled = self._read_beside_black([self.negative_caption])
        extras = {"text_mask": mask, "pooled": pooled, "guidance": torch.ones(len(images), device=self.device)}
        return Condition(
            text,
            negative,
            self.encode_image(images),
            extras,
            {"text_mask": negative_mask, "pooled": negative_pooled},
        )
