"""The wanx family: Wan image-to-video in diffusers layout, its denoiser; what surrounds it is in `wan_encoders`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPVisionModel, UMT5EncoderModel

from flgbench.models.base import Condition, PassTally, Placement, SelfAttention, StockCall
from flgbench.models.cpu_kernels import with_fast_gelu
from flgbench.models.denoiser import KEPT_BLOCKS, SELF_ATTENTION, with_given_frame
from flgbench.models.diffusers_folder import OWN, ClipSettings
from flgbench.models.folded_conv import SMALL, fold_convolutions
from flgbench.models.parts import Part, check_room, part, unchanged
from flgbench.models.wan_attention import kind_of, project, with_kind, with_lean_attention
from flgbench.models.wan_checkpoint import Checkpoint
from flgbench.models.wan_encoders import IMAGE_TOKENS, WanEncoders

if TYPE_CHECKING:
    from flgbench.sampling import SamplerSettings

ON_CPU = Placement()


def ready(transformer: Any) -> Any:
    """`transformer` with rotary angles in fp32: diffusers keeps them in fp64, which makes every rotation fp64.

    One that is on a CPU gets faster kernels, see `cpu_kernels`.
    """
    transformer.rope.float()
    on_cpu = transformer.patch_embedding.weight.device.type == "cpu"
    return with_fast_gelu(with_lean_attention(transformer)) if on_cpu else transformer


def cast(transformer: Any, dtype: torch.dtype) -> Any:
    """`transformer` in `dtype`, but for what diffusers keeps in fp32 when it loads a denoiser. In place."""
    for name, parameter in transformer.named_parameters():
        kept = set(name.split(".")) & set(transformer._keep_in_fp32_modules)
        parameter.data = parameter.data.to(torch.float32 if kept else dtype)
    return transformer


class WanX(WanEncoders):
    """A Wan image-to-video model, in the two layouts of diffusers' `WanImageToVideoPipeline`.

    Wan 2.1: a mask and the first frame's latents are concatenated to the noisy channels, and an image encoder's tokens,
    where the model has one, go beside the text. Wan 2.2 TI2V (`per_token_times`): the first latent frame is given, clean,
    at time 0, and every token has its own time.

    Each part is a module, or a `Part` that is read when it is first needed; a denoiser that is a `Part` tells its
    `placement`, where it will be. The denoiser runs in its own dtype; `x`, times and velocities are fp32.
    """

    lists = {"blocks": "num_layers"}
    entrance = "patch_embedding"

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        clip_shape: tuple[int, int, int],
        text_length: int,
        negative_caption: str = "",
        *,
        image_encoder: Any = None,
        image_processor: Any = None,
        per_token_times: bool = False,
        placement: Placement = ON_CPU,
    ) -> None:
        around = (vae, text_encoder, tokenizer, image_encoder, image_processor)
        super().__init__(*around, clip_shape, text_length, negative_caption, per_token_times)
        self.placement = placement
        self.transformer = transformer
        if not isinstance(transformer, Part):
            ready(transformer)
        self.tally = PassTally()
        self.n_teacher_blocks = transformer.config["num_layers"]
        self._kept = tuple(range(self.n_teacher_blocks))

    @classmethod
    def load(cls, folder: Path, clips: ClipSettings | None = None, placement: Placement = ON_CPU) -> WanX:
        """The diffusers folder with `clips`, by default those of its flgbench.json. Frozen, eval mode.

        Denoiser and text encoder are in the dtype of `placement`; autoencoder and image encoder stay in fp32, as diffusers
        advises: they are small, and bf16 shows in their pixels. Raises UsageError, when the denoiser is read, where it does
        not fit the device.
        """
        clips = clips or ClipSettings.of(json.loads((folder / OWN).read_text()))
        found = Checkpoint(folder)

        def to_device(transformer: Any) -> Any:
            return ready(transformer.to(placement.device))

        def fits() -> None:
            check_room(placement, found.parameters, folder / "transformer")

        small = placement.device == "cpu" and clips.clip[1] * clips.clip[2] <= SMALL
        seen = found.sees_image
        return cls(
            part(WanTransformer3DModel, folder / "transformer", placement.dtype, to_device, before=fits),
            part(AutoencoderKLWan, folder / "vae", torch.float32, fold_convolutions if small else unchanged),
            part(UMT5EncoderModel, folder / "text_encoder", placement.dtype),
            Part(lambda: AutoTokenizer.from_pretrained(folder / "tokenizer")),
            clips.clip,
            clips.text_length,
            clips.negative_caption,
            image_encoder=part(CLIPVisionModel, folder / "image_encoder", torch.float32) if seen else None,
            image_processor=Part(lambda: CLIPImageProcessor.from_pretrained(folder / "image_processor")) if seen else None,
            per_token_times=found.per_token_times,
            placement=placement,
        )

    def with_transformer(self, folder: Path) -> WanX:
        """The same encoders with the denoiser stored in `folder`."""
        twin = self._twin(ready(self._read(folder).to(self.device)).requires_grad_(False).eval())
        twin._kept = tuple(json.loads((folder / KEPT_BLOCKS).read_text()))
        return twin

    def _read(self, folder: Path) -> WanTransformer3DModel:
        file = folder / SELF_ATTENTION
        kinds = json.loads(file.read_text()) if file.exists() else []
        if all(kind == "full" for kind in kinds):
            return WanTransformer3DModel.from_pretrained(folder, dtype=self.dtype)
        # `from_pretrained` knows only whole blocks: it would make up the weights that are gone.
        with init_empty_weights(include_buffers=False):
            denoiser = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(folder))
        self._set_self_attention(denoiser, kinds)
        weights: dict[str, torch.Tensor] = {}
        for shard in folder.glob("*.safetensors"):  # large models are saved in several
            weights |= load_file(shard)
        denoiser.load_state_dict(weights, assign=True)
        return cast(denoiser, self.dtype)

    def _velocity(self, x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        device, dtype = self.device, self.dtype
        image = condition.image.to(device).float()
        tokens = condition.extras.get(IMAGE_TOKENS)
        seen = torch.cat([image, x[:, :, 1:]], dim=2) if self.per_token_times else torch.cat([x, image], dim=1)
        velocity = self.transformer(
            hidden_states=seen.to(dtype),
            timestep=1000 * (self._token_times(t) if self.per_token_times else t),  # diffusers counts from 0 to 1000
            encoder_hidden_states=condition.text.to(device, dtype),
            encoder_hidden_states_image=None if tokens is None else tokens.to(device, dtype),
            return_dict=False,
        )[0].float()
        return with_given_frame(velocity, x, t, image) if self.per_token_times else velocity

    def _token_times(self, t: torch.Tensor) -> torch.Tensor:
        """(B, tokens) times of a clip at times t (B,): 0 for the tokens of the given first frame."""
        _, *patch = self.transformer.config.patch_size
        frame = math.prod(n // p for n, p in zip(self.latent_shape[2:], patch, strict=True))
        times = t[:, None].repeat(1, self.token_frames * frame)
        times[:, :frame] = 0
        return times

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

    def stock_pipeline(self, scheduler: Any) -> WanImageToVideoPipeline:
        return WanImageToVideoPipeline(
            tokenizer=self.tokenizer,
            text_encoder=self.text_encoder,
            vae=self.vae,
            scheduler=scheduler,
            transformer=self.transformer,
            image_encoder=self.image_encoder,
            image_processor=self.image_processor,
            expand_timesteps=self.per_token_times,
        )

    def stock_call(self, sampler: SamplerSettings) -> StockCall:
        frames, height, width = self.clip_shape
        arguments = {
            "negative_prompt": self.negative_caption,
            "height": height,
            "width": width,
            "num_frames": frames,
            "num_inference_steps": sampler.num_inference_steps,
            "guidance_scale": sampler.guidance_scale,
            "max_sequence_length": self.text_length,
        }
        return StockCall(arguments)
