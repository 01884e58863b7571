"""What a method, a baseline and a family promise. The engine knows nothing else about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from flgbench.costs import Network
from flgbench.data.source import ClipSource
from flgbench.errors import UsageError
from flgbench.models.base import Placement, StudentShape, VideoModel
from flgbench.models.published import BlockKind
from flgbench.sampling import SamplerSettings
from flgbench.settings import NoSettings, Settings
from flgbench.stage import Stage

Kind = Literal["reference", "baseline", "open", "control"]
MethodKind = Literal["method", "control"]
MethodFamily = Literal["step", "size", "joint", "training-free"]


@dataclass(frozen=True)
class FamilyPreset:
    """The numbers of one family at one scale that methods build their defaults on."""

    shift: float
    guidance_scale: float
    num_inference_steps: int
    clip: tuple[int, int, int]  # frames, height, width
    fps: int
    blocks: int
    self_attention_share: float  # of the denoiser's parameters; 0 where it cannot be removed
    guidance_is_embedded: bool = False  # the teacher is told its scale: one pass a step
    beta1: float | None = None  # of a distillation's teacher over the negative caption; none: a share of `guidance_scale`
    beta2: float = 0.25  # and of the dense over the pruned teacher; the paper's value for both of its families
    kinds: tuple[BlockKind, ...] = ()  # of the blocks in order; none: all are alike
    loses: str | None = None  # the kind that goes first from students whose ranking is not known; none: the last blocks

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """Parameters of each block by position; of blocks that are alike, 1."""
        return tuple(kind.parameters for kind in self.kinds for _ in range(kind.count)) or (1,) * self.blocks

    @property
    def unranked(self) -> tuple[int, ...]:
        """Positions in the order in which blocks go where no ranking says which: from the last one on, `loses` first."""
        names = [kind.name for kind in self.kinds for _ in range(kind.count)] or [""] * self.blocks
        backwards = range(self.blocks - 1, -1, -1)
        return tuple(sorted(backwards, key=lambda position: names[position] != self.loses))

    def teacher_sampler(self) -> SamplerSettings:
        """How the teacher is sampled, and every student that keeps its steps and its guidance."""
        told, guided = (self.guidance_scale, 1.0) if self.guidance_is_embedded else (None, self.guidance_scale)
        return SamplerSettings(
            num_inference_steps=self.num_inference_steps, guidance_scale=guided, embedded_guidance=told, shift=self.shift
        )


@dataclass(frozen=True)
class Around:
    """About what a clip takes besides its network passes: FLOPs of encoders and decoder, bytes beyond weights.

    `decoder_bytes`: of the weights that turn latents into pixels.
    """

    flops: int
    activation_bytes: int
    decoder_bytes: int


class Family(ABC):
    """A model family, for example wanx: loads teachers, knows presets.

    `checkpoint` is a folder in diffusers layout or a hub id, with its `revision`; None stands for a scale's own.
    """

    name: ClassVar[str]
    scales: ClassVar[tuple[str, ...]]
    recipe: ClassVar[str] = "flgbench.models.tiny.pretrain"  # module that makes and reads the tiny teacher
    clips: ClassVar[ClipSource] = ClipSource()  # that its models are trained and measured on

    def __init__(self, checkpoint: str | None = None, revision: str | None = None) -> None:
        self.checkpoint, self.revision = checkpoint, revision

    @abstractmethod
    def preset(self, scale: str) -> FamilyPreset:
        """A scale's numbers, which need no weights; of a `checkpoint` that was named, the numbers its folder says."""

    @abstractmethod
    def folder(self, scale: str) -> Path:
        """The diffusers folder of the teacher. Raises UsageError when it is not there."""

    def network(self, scale: str) -> Network | None:
        """The denoiser's sizes, from which a plan tells its cost, without its weights; None is not known."""
        return None

    @abstractmethod
    def fingerprint(self, scale: str) -> str:
        """What identifies the teacher's weights: part of every key that depends on them. Raises UsageError if damaged."""

    @abstractmethod
    def load(self, scale: str, placement: Placement | None = None) -> VideoModel:
        """The teacher, frozen; its parts are read when needed.

        Without a `placement` tiny is on the CPU in fp32, a real scale in bf16 on the GPU if there is one. Raises UsageError
        for weights that are not there, not whole, not what they should be, or do not fit the device.
        """

    def untrained(self, scale: str, clip: tuple[int, int, int], device: str, dtype: torch.dtype) -> VideoModel:
        """The teacher's architecture with random weights on `device`, 'meta' included, for clips (frames, height, width).

        Raises UsageError where a family has none, or not for such clips.
        """
        raise UsageError(f"family '{self.name}' is not built with random weights yet: its cost cannot be weighed")

    def pass_flops(self, model: VideoModel) -> Mapping[str, int]:
        """FLOPs of one network pass of `model` for one clip by part, by formula; empty where a family has none."""
        return {}

    def around(self, model: VideoModel) -> Around:
        """What clips of `model`, an `untrained` one on 'meta', take besides passes."""
        return Around(0, 0, 0)


@dataclass(frozen=True)
class StageSpec:
    """One stage of a method: the class that does it, its settings, what it reads, and its budget in network passes.

    `inputs` maps the role that the stage asks for to the name of an earlier stage of the same method.
    """

    name: str
    stage: type[Stage]
    settings: Settings
    inputs: Mapping[str, str] = field(default_factory=dict)
    budget: float = 0.0


class Method(ABC):
    """A way to make a student. One file, one registry line (see methods/README.md).

    `kind` "control": trained and measured as any method, but shown to read the others and not ranked.
    """

    label: ClassVar[str]
    kind: ClassVar[MethodKind] = "method"
    family: ClassVar[MethodFamily]
    changes: ClassVar[str]
    papers: ClassVar[tuple[str, ...]] = ()  # arXiv ids, cited by what is exported
    Settings: ClassVar[type[Settings]]

    def __init__(self, settings: Any, preset: FamilyPreset) -> None:
        self.settings, self.preset = settings, preset

    @abstractmethod
    def stages(self, budget: float) -> list[StageSpec]:
        """The stages in order, which share `budget` network passes; the last one's artifact holds the student."""

    @abstractmethod
    def sampler(self) -> SamplerSettings:
        """How the student is sampled."""

    def keeps_network(self) -> bool:
        """Whether the student differs from the teacher in its weights only.

        Weights do not decide how long a pass takes: such a student is timed with the teacher's, and its latency waits
        for no training.
        """
        return False

    def shape(self) -> StudentShape:
        """What the student computes, as far as settings tell it: its time is known before it is trained.

        How many blocks of each kind decide the time of a pass, not which: where only training tells which, any will do.
        Raises UsageError when not even their number is known.
        """
        if self.keeps_network():
            return StudentShape.without(self.preset.blocks)
        raise UsageError(f"{self.label}: only a trained student tells what it computes; `flgbench run` trains and times it")


@dataclass(frozen=True)
class EvaluationBatch:
    """Clips to make: their conditions, first frames (B, H, W, 3) uint8, true videos, and (condition, sample) ids.

    `captions` are the words that the condition was encoded from, for models that have encoders of their own.
    Samples after a condition's first have true videos with another draw of what is hidden, as generated ones do. Where the
    conditions have no true videos, `truth` is empty: (B, 0, H, W, 3).
    """

    condition: Any
    first_frames: torch.Tensor
    truth: torch.Tensor
    identities: list[tuple[int, int]]
    captions: Sequence[str] = ()


class Baseline(ABC):
    """Something to compare with that makes no student: a sampler of the teacher, or a control without a network.

    `inferred`: sampler setting -> note, beginning with INFERRED, of each value that no source states.
    """

    label: ClassVar[str]
    kind: ClassVar[Kind] = "baseline"
    changes: ClassVar[str]
    inferred: ClassVar[Mapping[str, str]] = {}
    Settings: ClassVar[type[Settings]] = NoSettings
    needs_truth: ClassVar[bool] = False  # makes its clips from the true videos: skipped where there are none

    def __init__(self, preset: FamilyPreset, settings: Any = None) -> None:
        self.preset = preset
        self.settings: Any = self.Settings() if settings is None else settings

    def row_label(self) -> str:
        """What the row is called in tables."""
        return self.label

    def sampler(self) -> SamplerSettings | None:
        """How the teacher is sampled, or None for a control that `generate`s its clips without the denoiser."""
        return None

    def generate(self, model: VideoModel, batch: EvaluationBatch) -> torch.Tensor:
        """(B, T, H, W, 3) uint8 clips of a control."""
        raise TypeError(f"{type(self).__name__} has a sampler: the engine samples the teacher with it")


@dataclass(frozen=True)
class OpenClip:
    """One clip (T, H, W, 3) uint8 of an open model, the seconds of its stages (text_s, denoise_s, decode_s, end_to_end_s)
    and what was found out: nfe, parameters, fps, native_size, …"""

    video: torch.Tensor
    seconds: Mapping[str, float]
    facts: Mapping[str, Any]


class OpenModel(Baseline):
    """Another image-to-video model, with a pipeline, weights and a clip size of its own."""

    kind: ClassVar[Kind] = "open"
    facts: Mapping[str, Any]  # of the last clip

    @abstractmethod
    def fingerprint(self) -> Mapping[str, str]:
        """What identifies its weights: part of every key. Raises UsageError when they are not on this machine."""

    @abstractmethod
    def make(self, first_frame: torch.Tensor, caption: str, seed: int) -> OpenClip:
        """A clip of the comparison's size, frames and rate from first_frame (H, W, 3) uint8."""

    def generate(self, model: VideoModel | None, batch: EvaluationBatch) -> torch.Tensor:
        clips = []
        for frame, caption, who in zip(batch.first_frames, batch.captions, batch.identities, strict=True):
            made = self.make(frame, caption, self.seed_of(*who))
            self.facts = made.facts
            clips.append(made.video)
        return torch.stack(clips)

    @staticmethod
    def seed_of(condition: int, sample: int) -> int:
        """The seed of one clip, the same for every open model and batch."""
        return condition * 1009 + sample
