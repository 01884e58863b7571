"""Do the frames of a clip agree with its caption, by a CLIP model of the `clip-anytorch` package?

At tiny scale that is a small one, trained contrastively on captions and frames of procedural clips (`train_clip`), with
OpenAI's tokenizer and the package's own model class; a file of OpenAI's weights (ViT-L/14) is loaded the same way. It
looks at frames one by one, as every CLIP score: it knows nothing of motion, and a frozen clip scores as the real one.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from flgbench.metrics import judges
from flgbench.shipped import verify

WEIGHTS = judges.WEIGHTS / "clip"
FRAMES = (0, 4, 8, 12, 16)
CONTEXT = 32  # tokens of a caption in the tiny model; OpenAI's have 77
EMBEDDING = "token_embedding.weight"  # of its 49,408 rows the file holds those that captions use
_CLIPS_AT_ONCE = 16

Loaded = tuple[Any, Callable[[Image.Image], torch.Tensor]]  # the model and its own preprocessing of a picture


def package() -> Any:
    """The module `clip`, without the warnings of its import of pkg_resources."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import clip
    return clip


def used_rows(state: dict[str, torch.Tensor], tokens: Sequence[int]) -> dict[str, torch.Tensor]:
    """The state of a model with only the rows `tokens` of its token embedding, and their numbers beside them."""
    index = torch.tensor(sorted(set(tokens)))
    return state | {EMBEDDING: state[EMBEDDING][index], "tokens": index}


def all_rows(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `used_rows`; a token that no caption uses embeds as zero."""
    rows = len(package().clip._tokenizer.encoder)
    whole = torch.zeros(rows, state[EMBEDDING].shape[1], dtype=state[EMBEDDING].dtype)
    whole[state["tokens"]] = state[EMBEDDING]
    return {k: v for k, v in state.items() if k != "tokens"} | {EMBEDDING: whole}


@lru_cache(maxsize=2)
def load(path: Path | None = None) -> Loaded:
    """By `clip.load`: the shipped tiny model, or the weights in the file `path`. Raises UsageError for damaged weights."""
    if path is not None:
        return _by_package(path)
    verify(WEIGHTS)
    with tempfile.TemporaryDirectory() as folder:  # the package reads torch's format; what ships is safetensors
        file = Path(folder) / "model.pt"
        torch.save(all_rows(load_file(WEIGHTS / "model.safetensors")), file)
        return _by_package(file)


def _by_package(file: Path) -> Loaded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tries TorchScript first, which torch calls deprecated
        return package().load(str(file), device="cpu")


@torch.inference_mode()
def alignment(
    video: torch.Tensor, captions: Sequence[str], loaded: Loaded | None = None, chosen: Sequence[int] = FRAMES
) -> np.ndarray:
    """Mean cosine, (N,) float64 in [-1, 1], of the frames `chosen` of each clip (N, T, H, W, 3) uint8 and its caption."""
    if len(video) != len(captions):
        raise ValueError(f"{len(video)} clips but {len(captions)} captions")
    model, preprocess = loaded or load()
    found = [torch.zeros(0)]
    for start in range(0, len(video), _CLIPS_AT_ONCE):
        part, told = video[start : start + _CLIPS_AT_ONCE], list(captions[start : start + _CLIPS_AT_ONCE])
        text = model.encode_text(package().tokenize(told, context_length=model.context_length, truncate=True))
        frames = part[:, [f for f in chosen if f < part.shape[1]]]
        pictures = [preprocess(Image.fromarray(frame.numpy())) for frame in frames.flatten(0, 1)]
        seen = model.encode_image(torch.stack(pictures)).unflatten(0, frames.shape[:2])
        found.append(torch.cosine_similarity(seen.float(), text.float()[:, None], dim=-1).mean(1))
    return torch.cat(found).numpy().astype(np.float64)
