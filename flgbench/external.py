"""Other people's students: a TOML file that names weights and how they are sampled. Read and checked without torch.

    [[student]]
    name = "lightx2v-4"                 # of the row and the cell
    lora = "i2v_rank64.safetensors"     # fused into the teacher; or folder: a transformer's or a pipeline's
    sampler = "renoise"                 # euler, renoise or unipc
    num_inference_steps = 4             # even steps shifted by shift; or times in (0, 1]; or timesteps in (0, 1000]
    shift = 5.0
    guidance_scale = 1.0
    source = "https://huggingface.co/lightx2v/Wan2.1-Distill-Loras"

Paths are relative to the TOML file. Nothing is downloaded, and nothing pickled is read.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from flgbench.errors import UsageError
from flgbench.registry import registry
from flgbench.settings import Settings, build_settings
from flgbench.store import sha256

if TYPE_CHECKING:
    from flgbench.sampling import SamplerSettings

CONFIG, WEIGHTS, INDEX = (
    "config.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
# Beside config.json where flgbench itself saved the student.
KEPT_BLOCKS = "kept_blocks.json"
SIDECARS = (KEPT_BLOCKS, "self_attention.json")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class ExternalStudent(Settings):
    """One `[[student]]`. Exactly one of `folder` and `lora`, and one of `num_inference_steps`, `times` and `timesteps`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    label: str = ""
    folder: str | None = Field(None, description="diffusers transformer folder, or a pipeline folder with one inside")
    lora: str | None = Field(None, description="LoRA in one .safetensors file, fused into the teacher")
    lora_scale: float = Field(1.0, gt=0, description="strength of the LoRA")
    sampler: Literal["euler", "renoise", "unipc"]
    guidance_scale: float = Field(ge=1.0, description="1: no guidance, one pass a step")
    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    shift: float | None = Field(None, gt=0)
    times: tuple[float, ...] | None = Field(
        None, min_length=1, description="descending, in (0, 1]; the end at 0 is understood"
    )
    timesteps: tuple[float, ...] | None = Field(
        None, min_length=1, description="the same in thousandths, as diffusers counts"
    )
    source: str = Field(min_length=1, description="paper or address")
    licence: str = "not stated"

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if (self.folder is None) == (self.lora is None):
            raise ValueError("needs either folder or lora")
        if self.lora is None and self.lora_scale != 1:
            raise ValueError("lora_scale belongs to a lora")
        if sum(value is not None for value in (self.num_inference_steps, self.times, self.timesteps)) != 1:
            raise ValueError("needs exactly one of num_inference_steps (with shift), times and timesteps")
        if (self.num_inference_steps is None) != (self.shift is None):
            raise ValueError("shift belongs to num_inference_steps: give both, or an explicit list of times alone")
        return self

    def sampler_settings(self) -> SamplerSettings:
        """How it is sampled. Raises pydantic's ValidationError for times that do not descend within (0, 1]."""
        from flgbench.sampling import SamplerSettings

        told: dict[str, Any] = {"kind": self.sampler, "guidance_scale": self.guidance_scale}
        times = self.times or tuple(t / 1000 for t in self.timesteps or ())
        if times:
            return SamplerSettings(**told, num_inference_steps=len(times), times=times)
        return SamplerSettings(**told, num_inference_steps=self.num_inference_steps, shift=self.shift)


class Found(Settings):
    """A student whose files are there and fit the teacher.

    `files` is name -> sha256 of what is read at `place`, a transformer folder or a LoRA file. `keeps_network`: it differs
    from the teacher in its weights only.
    """

    student: ExternalStudent
    place: str
    files: dict[str, str]
    keeps_network: bool

    def content(self) -> dict[str, Any]:
        """What decides its weights, for the key of a step: no path and no name."""
        kind: dict[str, Any] = {"lora_scale": self.student.lora_scale} if self.student.lora else {}
        return kind | {"brought": "lora" if self.student.lora else "folder", "files": self.files}


def read(paths: Sequence[Path], teacher: Path) -> tuple[Found, ...]:
    """The students of all files, checked against the teacher's diffusers folder.

    Raises UsageError, naming file and student, for an unknown key, a name that is taken, a missing or pickled file, times
    that do not descend, and weights that do not fit the teacher. Imports torch and diffusers.
    """
    taken = {name: kind for kind in ("methods", "baselines") for name in registry(kind).names()}
    found = []
    for path in paths:
        for values in _entries(path):
            owner = f"--external {path}: student '{values.get('name', '?')}'"
            student = build_settings(ExternalStudent, values, owner)
            if student.name in taken:
                raise UsageError(f"{owner}: the name is taken among the {taken[student.name]}: choose another")
            taken[student.name] = "students"
            _check_times(student, owner)
            found.append(_locate(student, path.parent, teacher, owner))
    return tuple(found)


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--external {path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--external {path}: cannot be read as TOML ({error})") from None
    entries = content.pop("student", None)
    if content:
        raise UsageError(f"--external {path}: unknown key '{next(iter(content))}': the file holds [[student]] entries only")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"--external {path}: holds no [[student]] entry")
    return entries


def _check_times(student: ExternalStudent, owner: str) -> None:
    from pydantic import ValidationError

    try:
        student.sampler_settings()
    except ValidationError as error:
        raise UsageError(f"{owner}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _locate(student: ExternalStudent, base: Path, teacher: Path, owner: str) -> Found:
    from flgbench.models import outside

    place = (base / Path(student.folder or student.lora or "").expanduser()).resolve()
    if not place.exists():
        raise UsageError(f"{owner}: {place} does not exist")
    if student.lora:
        if place.suffix != ".safetensors":
            raise UsageError(f"{owner}: {place.name} is not a .safetensors file: nothing else is read")
        problem = outside.lora_problem(place, teacher / "transformer")
        files, keeps = [place], True
    else:
        place = _transformer_folder(place, owner)
        weights = _weights(place, owner)
        files = [place / name for name in (CONFIG, *weights)]
        files += [place / name for name in SIDECARS if (place / name).exists()]
        problem = outside.folder_problem(place, [n for n in weights if n != INDEX], teacher / "transformer")
        keeps = not problem and outside.same_network(place, teacher / "transformer")
    if problem:
        raise UsageError(f"{owner}: {place.name if student.lora else place}: {problem}")
    return Found(student=student, place=str(place), files={f.name: sha256(f) for f in files}, keeps_network=keeps)


def _transformer_folder(place: Path, owner: str) -> Path:
    """The folder of the denoiser in `place`, which may be a whole pipeline's."""
    if not place.is_dir():
        raise UsageError(f"{owner}: {place} is no folder: a single file is a `lora`")
    index = place / "model_index.json"
    if index.exists():
        if json.loads(index.read_text()).get("transformer_2", [None])[0]:
            raise UsageError(f"{owner}: {place} has two denoisers (transformer_2), the teacher has one")
        place = place / "transformer"
    if not (place / CONFIG).exists():
        raise UsageError(f"{owner}: no {CONFIG} in {place}: it is neither a transformer nor a pipeline folder of diffusers")
    return place


def _weights(place: Path, owner: str) -> list[str]:
    """Names of the weight files: one, or an index and its shards."""
    if (place / INDEX).exists():
        shards = sorted(set(json.loads((place / INDEX).read_text())["weight_map"].values()))
        if absent := next((name for name in shards if not (place / name).exists()), None):
            raise UsageError(f"{owner}: {absent} is missing in {place}")
        return [INDEX, *shards]
    if (place / WEIGHTS).exists():
        return [WEIGHTS]
    pickled = next((p.name for p in sorted(place.iterdir()) if p.suffix in PICKLED), None)
    if pickled:
        raise UsageError(f"{owner}: {place / pickled} is pickled, which can run code: save it as safetensors")
    raise UsageError(f"{owner}: no {WEIGHTS} in {place}")


def described(found: Found) -> Mapping[str, Any]:
    """What reports show of it as settings."""
    student = found.student
    told = {"source": student.source, "licence": student.licence, "sha256": found.files}
    return told | ({"lora_scale": student.lora_scale} if student.lora else {}) | student.sampler_settings().record()
