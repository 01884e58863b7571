"""What people hand to `flgbench sample`: images and prompts, checked before anything heavy is imported."""

from __future__ import annotations

import html
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flgbench.csv_input import csv_rows, opened
from flgbench.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

COLUMNS = ("image", "prompt")


@dataclass(frozen=True)
class Request:
    """One clip to make."""

    image: Path
    prompt: str
    output: Path


def read_image(source: Path | str | Image) -> Image:
    """The whole image, RGB, upright as its EXIF says. Raises UsageError where there is none."""
    from PIL import Image as images
    from PIL import ImageOps

    if isinstance(source, images.Image):
        return source.convert("RGB")
    path = Path(source)
    if not path.exists():
        raise UsageError(f"image {path}: no such file")
    try:
        with warnings.catch_warnings(), images.open(path) as opened:
            warnings.simplefilter("error", images.DecompressionBombWarning)
            return ImageOps.exif_transpose(opened).convert("RGB")
    except images.UnidentifiedImageError:
        raise UsageError(f"image {path}: not an image that can be read; PNG and JPEG can") from None
    except (OSError, SyntaxError, ValueError, images.DecompressionBombError, images.DecompressionBombWarning) as error:
        raise UsageError(f"image {path}: cannot be read ({' '.join(str(error).split())})") from None


def fit(image: Image, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: scaled by Lanczos so that it just covers `size` (height, width), then cropped around its centre."""
    import numpy as np
    from PIL import Image as images
    from PIL import ImageOps

    return np.asarray(ImageOps.fit(image, size[::-1], images.Resampling.LANCZOS)).copy()


def clean_prompt(prompt: str) -> str:
    """The prompt as the stock pipeline reads it. Raises UsageError when nothing is left."""
    import ftfy

    cleaned = " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())
    if not cleaned:
        raise UsageError("the prompt is empty: say what the clip shall show")
    return cleaned


def one(image: Path, prompt: str, output: Path) -> list[Request]:
    """The request of one image and one prompt. Raises UsageError for what is wrong with any of the three."""
    if output.suffix.lower() != ".mp4":
        raise UsageError(f"-o {output}: a clip is written as .mp4")
    clean_prompt(prompt)
    read_image(image)
    _check_folder(output.parent, output)
    if output.is_dir():
        raise UsageError(f"-o {output}: is a folder")
    return [Request(image, prompt, output)]


def many(images: Path, prompts: Path, output: Path) -> list[Request]:
    """The requests of a CSV with columns image and prompt, whose images are in the folder `images`.

    Row N becomes NNNN-<image>.mp4 in the folder `output`. Raises UsageError, naming the line, before any clip is made.
    """
    if output.suffix.lower() == ".mp4":
        raise UsageError(f"-o {output}: many clips are written into a folder, not one .mp4")
    rows = _rows(prompts)
    requests: list[Request] = []
    for line, (name, prompt) in rows:
        try:
            read_image(images / name)
            clean_prompt(prompt)
        except UsageError as error:
            raise UsageError(f"--prompts {prompts}, line {line}: {error}") from None
        number = len(requests) + 1
        requests.append(Request(images / name, prompt, output / f"{number:04d}-{Path(name).stem}.mp4"))
    _check_folder(output, output)
    return requests


def _rows(path: Path) -> list[tuple[int, tuple[str, str]]]:
    """(line number, (image, prompt)) of every row that is not blank."""
    with opened(path, "--prompts") as file:
        rows = [
            (line, (row["image"] or "", row["prompt"] or "")) for line, row in csv_rows(file, path, "--prompts", COLUMNS)
        ]
    if not rows:
        raise UsageError(f"--prompts {path}: no rows")
    return rows


def _check_folder(folder: Path, shown: Path) -> None:
    """Make `folder` and raise UsageError unless files can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"-o {shown}: cannot write there ({error.strerror}): choose another place") from None
