"""What the text encoders of HunyuanVideo read: a caption beside the first frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import HunyuanVideoImageToVideoPipeline
from PIL import Image
from transformers import CLIPImageProcessor, CLIPTextModel, LlavaForConditionalGeneration, PreTrainedTokenizerBase

from flgbench.models.hunyuan_presets import IMAGE_INTERLEAVE, TEMPLATE_TAIL
from flgbench.models.parts import Held, Part, placed


class TextReader:
    """Captions beside their first frame to what the denoiser reads, by the stock pipeline's own code.

    Negative captions too: the stock pipeline itself reads twice as many of the image's tokens beside those, which its
    `negative_prompt_embeds` avoids.

    `template` are the stock pipeline's `prompt_template` settings; `length` the number of caption tokens that are read.
    """

    text_encoder, tokenizer, text_encoder_2, tokenizer_2, image_processor = Held(), Held(), Held(), Held(), Held()

    def __init__(
        self,
        text_encoder: LlavaForConditionalGeneration | Part,
        tokenizer: PreTrainedTokenizerBase | Part,
        text_encoder_2: CLIPTextModel | Part,
        tokenizer_2: PreTrainedTokenizerBase | Part,
        image_processor: CLIPImageProcessor | Part,
        template: Mapping[str, Any],
        length: int,
    ) -> None:
        self.text_encoder, self.tokenizer, self.template, self.length = text_encoder, tokenizer, dict(template), length
        self.text_encoder_2, self.tokenizer_2, self.image_processor = text_encoder_2, tokenizer_2, image_processor

    @property
    def parts(self) -> dict[str, Any]:
        """The stock pipeline's, by its names; they are read."""
        names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "image_processor")
        return {name: getattr(self, name) for name in names}

    def read(
        self, images: torch.Tensor, captions: Sequence[str], device: torch.device | str = "cpu"
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings (B, L, D), zero behind each caption's end; their mask (B, L); pooled embeddings (B, P).

        images (B, H, W, 3) uint8. L is the number of image tokens that are read, then `length`. Encoders run on `device`.
        """
        for encoder in (self.text_encoder, self.text_encoder_2):
            placed(encoder, torch.device(device))
        stock = HunyuanVideoImageToVideoPipeline(transformer=None, vae=None, scheduler=None, **self.parts)
        text, pooled, mask = stock.encode_prompt(
            [Image.fromarray(image) for image in images.cpu().numpy()],  # tensors are resized by other code
            [self._cut(caption) for caption in captions],
            prompt_template=self.template,
            device=device,
            max_sequence_length=self.length + TEMPLATE_TAIL,
            image_embed_interleave=IMAGE_INTERLEAVE,
        )
        return text * mask[..., None], mask, pooled

    def _cut(self, caption: str) -> str:
        """Before the template is put around it: cut after, the stock pipeline would lose the template's end."""
        tokens = self.tokenizer(caption, add_special_tokens=False).input_ids
        return caption if len(tokens) <= self.length else self.tokenizer.decode(tokens[: self.length])
