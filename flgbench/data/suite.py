"""Images and prompts to make clips from, in the layout of VBench-I2V: a JSON list of prompts and a folder of images.

    DIR/vbench2_i2v_full_info.json    [{"prompt_en": "a close up of …", "image_name": "a close up of ….jpg"}, …]
    DIR/crop/1-1, 7-4, 8-5, 16-9      the images cropped to these ratios: the one nearest to the model's is read

The JSON may be any other that is alone in DIR, and the images may lie in DIR/data/crop/RATIO, DIR/images, DIR/data/origin,
DIR/origin or DIR itself; the first of these that is there is read. A prompt without an image (those of camera motion) has
the image of the prompt that it begins with. Images are scaled and cropped as the frames of clips are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flgbench.errors import UsageError
from flgbench.inputs import clean_prompt, fit, read_image

INFO = "vbench2_i2v_full_info.json"
CROPPED, PLAIN = ("crop", "data/crop"), ("images", "data/origin", "origin")
CAMERA = ", camera "


@dataclass(frozen=True)
class Prompt:
    """One condition: a first frame and what the clip shows."""

    image: Path
    text: str


def read_suite(folder: Path, size: tuple[int, int]) -> list[Prompt]:
    """Every prompt of the suite in `folder`, for clips of `size` (height, width).

    In the file's order, but each image's first prompt before any image's second: the first N show as many images as can be.
    Raises UsageError, naming the entry, for what is not there or cannot be read.
    """
    info = _info_file(folder)
    images = _image_folder(folder, size)
    entries = _entries(info)
    named = {entry["prompt_en"]: entry["image_name"] for entry in entries if "image_name" in entry}
    prompts: list[Prompt] = []
    for number, entry in enumerate(entries, start=1):
        text = entry["prompt_en"]
        name = entry.get("image_name") or named.get(text.partition(CAMERA)[0])
        try:
            if name is None:
                raise UsageError(f"no image_name, and no prompt '{text.partition(CAMERA)[0]}' has one")
            prompts.append(Prompt(_image(images / name), clean_prompt(text)))
        except UsageError as error:
            raise UsageError(f"--suite {info}, entry {number}: {error}") from None
    before: Counter[Path] = Counter()
    turns = []
    for prompt in prompts:
        turns.append(before[prompt.image])
        before[prompt.image] += 1
    return [prompt for _, prompt in sorted(zip(turns, prompts, strict=True), key=lambda pair: pair[0])]


def digest(prompts: Sequence[Prompt]) -> str:
    """What identifies the conditions: 12 hex digits over the bytes of the images and the texts, in order."""
    told = hashlib.sha256()
    for prompt in prompts:
        told.update(hashlib.sha256(prompt.image.read_bytes()).digest() + hashlib.sha256(prompt.text.encode()).digest())
    return told.hexdigest()[:12]


def images_of(prompts: Sequence[Prompt], size: tuple[int, int]) -> np.ndarray:
    """(N, H, W, 3) uint8 first frames. Raises UsageError for an image that cannot be read."""
    return np.stack([fit(read_image(prompt.image), size) for prompt in prompts])


def _image(path: Path) -> Path:
    """The same path. Raises UsageError where nothing that looks like an image is; its pixels are read later."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path):
            return path
    except FileNotFoundError:
        raise UsageError(f"image {path}: no such file") from None
    except (UnidentifiedImageError, OSError) as error:
        raise UsageError(f"image {path}: not an image that can be read ({' '.join(str(error).split())})") from None


def _info_file(folder: Path) -> Path:
    if not folder.is_dir():
        raise UsageError(f"--suite {folder}: no such folder")
    found = [folder / INFO] if (folder / INFO).is_file() else sorted(folder.glob("*.json"))
    if len(found) != 1:
        raise UsageError(f"--suite {folder}: {len(found) or 'no'} JSON files in it; it needs {INFO}, or one of another name")
    return found[0]


def _image_folder(folder: Path, size: tuple[int, int]) -> Path:
    for place in CROPPED:
        if ratios := {p: _ratio(p.name) for p in sorted((folder / place).glob("*-*")) if _ratio(p.name)}:
            wanted = math.log(size[1] / size[0])
            return min(ratios, key=lambda p: abs(math.log(ratios[p]) - wanted))
    return next((folder / place for place in PLAIN if (folder / place).is_dir()), folder)


def _ratio(name: str) -> float:
    """Width over height of a folder's name such as '16-9'; 0 of another name."""
    width, _, height = name.partition("-")
    return int(width) / int(height) if width.isdigit() and height.isdigit() and int(width) and int(height) else 0.0


def _entries(info: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(info.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"--suite {info}: cannot be read as JSON ({error})") from None
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"--suite {info}: expected a list of prompts, as VBench-I2V's")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt_en"), str):
            raise UsageError(f"--suite {info}, entry {number}: no text 'prompt_en'")
        if not isinstance(entry.get("image_name", ""), str):
            raise UsageError(f"--suite {info}, entry {number}: image_name is no text")
    return entries
