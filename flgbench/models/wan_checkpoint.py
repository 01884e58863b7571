"""A Wan checkpoint in diffusers layout: where it is, whether it is whole and the right kind, what identifies it.

Only configuration files and the headers of weight files are read here; nothing imports torch. Weights are .safetensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from flgbench.errors import UsageError
from flgbench.models.wan_presets import WanCheckpoint, denoiser_size

OWN = "flgbench.json"  # clip shape, text length and negative caption, for a checkpoint that differs from its scale's
BLOCKS_READ, BLOCK_BYTES = 64, 4096  # of each weight file's data, for its fingerprint
IMAGE_TEXT_LENGTH = 512  # diffusers' Wan attention splits image tokens from the text by this number

UNUSED = "norm_added_q"  # in the published weights of Wan 2.1, but in no model

WEIGHTED = {"transformer": "WanTransformer3DModel", "vae": "AutoencoderKLWan", "text_encoder": "umt5"}
IMAGE_ENCODER = {"image_encoder": "clip_vision_model"}
# What tells denoisers of one class apart.
ARCHITECTURE = ("num_layers", "num_attention_heads", "attention_head_dim", "ffn_dim", "in_channels", "out_channels")


def locate(scale: str, published: str, checkpoint: str | None, revision: str | None) -> Path:
    """The folder of `checkpoint`, a folder or a hub id; without one, of the scale's id `published`. Downloads nothing.

    Raises UsageError, with the command that downloads it, for an id or a revision that is not in the local hub cache.
    """
    if checkpoint and Path(checkpoint).is_dir():
        if revision:
            raise UsageError(f"--revision {revision} is of a hub id: {checkpoint} is a folder, leave it out")
        return Path(checkpoint)
    name = checkpoint or published
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UsageError(f"--checkpoint {name}: no such folder, and not a hub id such as {published}")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    cache = Path(constants.HF_HUB_CACHE)
    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True, cache_dir=cache))
    except LocalEntryNotFoundError as error:
        there = sorted(p.name for p in (cache / f"models--{name.replace('/', '--')}" / "snapshots").glob("*"))
        if getattr(error, "snapshot_path", None):
            problem = f"its copy in the hub cache {cache} is not whole"
        elif there:
            problem = f"revision {revision or 'main'} is not in the hub cache {cache}, only {', '.join(there)}"
        else:
            problem = f"not in the hub cache {cache}"
        asked = f"--checkpoint {name}: no such folder, and as a hub id" if checkpoint else f"--scale {scale}: {name}"
        command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise UsageError(f"{asked} {problem}. Download it with `{command}`, or name a folder with --checkpoint") from None


@dataclass(frozen=True)
class ClipSettings:
    """The clips a model makes: (frames, height, width) in pixels, caption tokens it reads, what guidance leaves."""

    clip: tuple[int, int, int]
    text_length: int
    negative_caption: str

    @classmethod
    def of(cls, own: Mapping[str, Any]) -> ClipSettings:
        """What a flgbench.json says."""
        frames, height, width = own["clip_shape"]
        return cls((frames, height, width), own["text_length"], own["negative_caption"])


@dataclass(frozen=True)
class Checkpoint:
    """A folder in diffusers layout. `check` before anything else is believed of it."""

    folder: Path

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """model_index.json."""
        return _json(self.folder / "model_index.json", "not a folder in diffusers layout")

    @property
    def per_token_times(self) -> bool:
        return bool(self.index.get("expand_timesteps"))

    @cached_property
    def denoiser(self) -> Mapping[str, Any]:
        return self._config("transformer")

    @property
    def parts(self) -> dict[str, str]:
        """Parts with weights that the model needs -> what their config.json says they are."""
        return WEIGHTED | (IMAGE_ENCODER if self.denoiser.get("image_dim") else {})

    @property
    def commit(self) -> str | None:
        """Of a folder in the hub's cache."""
        real = self.folder.resolve()
        return real.name if real.parent.name == "snapshots" else None

    def _config(self, part: str) -> Mapping[str, Any]:
        return _json(self.folder / part / "config.json", f"the part '{part}' is missing")

    def check(self, expected: WanCheckpoint | None = None) -> None:
        """Raise UsageError for what is missing, cut, or not a Wan image-to-video model; reads headers only.

        `expected`: also for a denoiser that is not the one of this published checkpoint.
        """
        self._check_kind()
        for part, kind in self.parts.items():
            config = self._config(part)
            found = config.get("_class_name") or config.get("model_type")
            if found != kind:
                raise UsageError(f"{self.folder / part}: its config.json says {found}, expected {kind}")
            for shard in self.shards(part):
                header(shard)
        folders = ["tokenizer"] + ["image_processor"] * ("image_encoder" in self.parts)
        for folder, files in zip(folders, ("tokenizer*", "preprocessor_config.json"), strict=False):
            if not any((self.folder / folder).glob(files)):
                raise UsageError(f"{self.folder}: the part '{folder}' is missing")
        self._check_channels()
        if expected:
            self._check_scale(expected)
        self._check_count()

    def _check_kind(self) -> None:
        kind = self.index.get("_class_name")
        # Wan 2.2 TI2V is published under the text-to-video pipeline, which makes both.
        if kind != "WanImageToVideoPipeline" and not (kind == "WanPipeline" and self.per_token_times):
            raise UsageError(
                f"{self.folder}: model_index.json says {kind}: not an image-to-video Wan model (WanImageToVideoPipeline, "
                f"or WanPipeline with expand_timesteps)"
            )
        if any(self.index.get("transformer_2") or ()):
            raise UsageError(f"{self.folder}: has two denoisers (Wan 2.2 A14B): a teacher here has one")

    def _check_channels(self) -> None:
        vae, found = self._config("vae"), self.denoiser.get("in_channels", 16)
        latent = vae.get("z_dim", 16)
        mask = 0 if self.per_token_times else vae.get("scale_factor_temporal", 4)
        wanted = latent if self.per_token_times else 2 * latent + mask
        told = f"{latent}" if self.per_token_times else f"{wanted} = {latent} noisy + {mask} mask + {latent} first frame"
        if found != wanted:
            kind = ": a text-to-video model" if found == latent else ""
            raise UsageError(
                f"{self.folder / 'transformer'}: {found} input channels{kind}; image-to-video with this vae needs {told}"
            )

    def _check_scale(self, expected: WanCheckpoint) -> None:
        found, wanted = self.denoiser, expected.transformer
        if wrong := [k for k in ARCHITECTURE if found.get(k) != wanted[k]]:
            told = ", ".join(f"{k} {found.get(k)}, expected {wanted[k]}" for k in wrong)
            raise UsageError(
                f"{self.folder}: not the denoiser of {expected.repository}: {told}. If it is meant: --checkpoint"
            )

    def _check_count(self) -> None:
        tensors = [t for shard in self.shards("transformer") for name, t in tensors_of(header(shard)) if UNUSED not in name]
        found, wanted = sum(prod(t["shape"]) for t in tensors), denoiser_size(self.denoiser).total
        if found != wanted:
            raise UsageError(
                f"{self.folder / 'transformer'}: holds {found} weights, its config.json describes {wanted}: they do not fit"
            )

    def shards(self, part: str) -> list[Path]:
        """Weight files of a part. Raises UsageError unless all that its index names are there."""
        folder = self.folder / part
        indices = sorted(folder.glob("*.safetensors.index.json"))
        if indices:
            names = sorted(set(_json(indices[0], "cannot be read")["weight_map"].values()))
            if missing := [n for n in names if not (folder / n).exists()]:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise UsageError(
                    f"{folder}: {missing[0]}{more} of {len(names)} weight files missing: the download is not whole"
                )
            return [folder / n for n in names]
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise UsageError(f"{folder}: no .safetensors weights (others are not read: they can carry code)")
        return files

    def facts(self, published: WanCheckpoint) -> WanCheckpoint:
        """`published` with what this folder says of its denoiser, its layout and, in flgbench.json, its clips."""
        own = json.loads((self.folder / OWN).read_text()) if (self.folder / OWN).exists() else {}
        length = own.get("text_length", published.text_length)
        if self.denoiser.get("image_dim") and length != IMAGE_TEXT_LENGTH:
            raise UsageError(
                f"{self.folder / OWN}: text_length {length}: a denoiser with image tokens reads {IMAGE_TEXT_LENGTH}"
            )
        return replace(
            published,
            transformer=self.denoiser,
            per_token_times=self.per_token_times,
            clip=tuple(own.get("clip_shape", published.clip)),
            fps=own.get("fps", published.fps),
            text_length=length,
            negative_caption=own.get("negative_caption", published.negative_caption),
        )

    def fingerprint(self) -> str:
        """What identifies the checkpoint: a hash, and the commit if the folder is one of the hub's cache.

        Hashed are all other files of the parts that are read, whole, and of each weight file its size, its header (names,
        shapes, dtypes, offsets) and 64 blocks of 4 KiB spread evenly over its data: a fine-tuning moves every weight, so it
        shows in them, and 30 GB need not be read. A change of single bytes between the blocks does not show.
        """
        digest = hashlib.sha256()
        folders = [*self.parts, "tokenizer", *(["image_processor"] if "image_encoder" in self.parts else [])]
        files = [p for part in folders for p in sorted((self.folder / part).rglob("*")) if p.is_file()]
        for path in [self.folder / "model_index.json", self.folder / OWN, *files]:
            if path.exists():
                digest.update(f"{path.relative_to(self.folder)}\n".encode())
                digest.update(_sampled(path) if path.suffix == ".safetensors" else path.read_bytes())
        return digest.hexdigest() + (f"@{self.commit}" if self.commit else "")


def header(path: Path) -> bytes:
    """The header of a .safetensors file. Raises UsageError where the file is cut or something else."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        content = file.read(length) if length < size else b""
    try:
        end = 8 + length + max(t["data_offsets"][1] for _, t in tensors_of(content))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UsageError(f"{path}: not a whole .safetensors file: download it again") from None
    if end != size:
        raise UsageError(f"{path}: {size} bytes, expected {end}: the download is not whole")
    return content


def tensors_of(content: bytes) -> list[tuple[str, Any]]:
    """(name, {"dtype", "shape", "data_offsets"}) of every tensor that a header lists."""
    return [(name, tensor) for name, tensor in json.loads(content).items() if name != "__metadata__"]


def _sampled(path: Path) -> bytes:
    head, size = header(path), path.stat().st_size
    start = 8 + len(head)
    last = max(start, size - BLOCK_BYTES)
    content = [str(size).encode(), head]
    with path.open("rb") as file:
        for position in sorted({start + (last - start) * i // (BLOCKS_READ - 1) for i in range(BLOCKS_READ)}):
            file.seek(position)
            content.append(file.read(BLOCK_BYTES))
    return b"".join(content)


def _json(path: Path, otherwise: str) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"{path.parent}: no {path.name}: {otherwise}") from None
    except ValueError:
        raise UsageError(f"{path}: cannot be read as JSON") from None
