"""Training-free pruning of temporal attention in full 3-D attention (F3-Pruning, arXiv 2312.03459; methods.md 7).

The source switches off whole temporal layers. Full 3-D attention has none: the attention on other frames' keys takes
their place here, as our adaptation. Layers with the least of it lose it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from flgbench import flow
from flgbench.errors import UsageError
from flgbench.models.base import SelfAttention, VideoModel
from flgbench.models.flops import pass_flops
from flgbench.settings import Settings
from flgbench.stage import ComputedStage, TrainingData
from flgbench.store import write_json

KINDS: dict[str, SelfAttention] = {"a": "frame", "b": "none"}


class TemporalPruningSettings(Settings):
    """What happens to the layers of least temporal mass, and how that is estimated."""

    variant: Literal["a", "b"] = Field(
        "a", description="INFERRED: a restricts self-attention to the own and the first latent frame, b removes it"
    )
    ratio: float = Field(0.5, ge=0, le=1, description="share of the layers that are changed; 2312.03459: rho = 50 %")
    keep: float | None = Field(
        None, gt=0, lt=1, description="variant b: share of parameters that may remain, in place of `ratio`"
    )
    clips: int = Field(16, ge=1, description="INFERRED: number of real clips; the paper averages over prompts")
    times: int = Field(4, ge=1, description="INFERRED: points of the fixed t grid; the paper averages over steps")
    queries: int = Field(256, ge=1, description="INFERRED: sampled queries of each layer; all when it has fewer")

    @model_validator(mode="after")
    def _one_target(self) -> TemporalPruningSettings:
        if self.keep is not None and self.variant == "a":
            raise ValueError(f"keep {self.keep} needs variant b: variant a removes no parameters")
        if self.keep is not None and "ratio" in self.model_fields_set:
            raise ValueError(f"keep {self.keep} and ratio {self.ratio} both say how many layers change: set one of them")
        return self


def temporal_mass(
    query: torch.Tensor, key: torch.Tensor, query_frames: torch.Tensor, key_frames: torch.Tensor
) -> torch.Tensor:
    """Mean over queries, heads and clips of sum_{k: frame(k) != frame(q)} softmax(q k^T / sqrt(D)), in [0, 1].

    query (B, Q, heads, D), key (B, N, heads, D), frames (Q,) and (N,) the latent frame each belongs to.
    """
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
    elsewhere = (query_frames[:, None] != key_frames[None, :]).to(scores.device)
    return (scores.softmax(dim=-1) * elsewhere).sum(dim=-1).mean()


@torch.no_grad()
def layer_masses(model: VideoModel, data: TrainingData, clips: int, times: int, queries: int) -> torch.Tensor:
    """T_l (blocks,): temporal mass of each self-attention layer on noised real clips, the mean over a fixed t grid."""
    x0, condition = data.latents[:clips], data.condition.select(slice(0, clips))
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    masses = torch.zeros(len(model.blocks))
    share = 0.0  # of all clips and times, the part that the pass at hand holds

    def listen(position: int, query: torch.Tensor, key: torch.Tensor) -> None:
        tokens = query.shape[1]
        frames = torch.arange(tokens) // (tokens // model.token_frames)
        chosen = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))[:queries]
        masses[position] += share * temporal_mass(query[:, chosen], key, frames[chosen], frames).to(masses.device)

    with model.listening_to_self_attention(listen):
        for t in (torch.arange(times) + 0.5) / times:
            for i in range(0, len(x0), 16):
                part = slice(i, i + 16)
                x_t = flow.interpolate(x0[part], noise[part], t)
                share = len(x_t) / len(x0) / times
                model.velocity(x_t, t.expand(len(x_t)), condition.select(part))
    return masses


def layers_for_keep(keep: float, parameters: float, bare_parameters: float, layers: int) -> int:
    """Fewest self-attention layers whose removal leaves at most `keep` x `parameters`.

    `bare_parameters` is what remains without any of the `layers`, all equally large. Raises UsageError below that.
    """
    limit = bare_parameters / parameters
    if keep < limit:
        raise UsageError(
            f"f3_pruning_b.keep {keep} is out of reach: without self-attention in any of the {layers} layers "
            f"{limit:.1%} of the parameters remain: choose at least {math.ceil(limit * 1000) / 1000}"
        )
    share_of_a_layer = (1 - limit) / layers
    return min(layers, math.ceil((1 - keep) / share_of_a_layer - 1e-9))


class TemporalPruning(ComputedStage):
    """Writes the student and `temporal_mass.json`: T_l of every layer, the changed layers, the sizes before and after."""

    Settings = TemporalPruningSettings

    @classmethod
    def passes(cls, settings: TemporalPruningSettings, blocks: int) -> float:
        return float(settings.clips * settings.times)

    def compute(self, out: Path) -> None:
        model, s = self.roles.teacher, self.settings
        layers = len(model.blocks)
        count = round(s.ratio * layers)
        if s.keep is not None:
            bare = model.with_self_attention(["none"] * layers)
            count = layers_for_keep(s.keep, model.n_parameters, bare.n_parameters, layers)
        masses = layer_masses(model, self.roles.data, s.clips, s.times, s.queries)
        changed = sorted(masses.argsort()[:count].tolist())
        kinds = [KINDS[s.variant] if i in changed else kind for i, kind in enumerate(model.self_attention)]
        student = model.with_self_attention(kinds)
        student.save(out / "transformer")
        one = self.roles.data.condition.select(slice(0, 1))
        write_json(
            out / "temporal_mass.json",
            {
                "blocks": list(model.kept_blocks),
                "temporal_mass": masses.tolist(),
                "changed": changed,
                "variant": s.variant,
                "parameters": student.n_parameters,
                "teacher_parameters": model.n_parameters,
                "pass_flops": pass_flops(student, one),
                "teacher_pass_flops": pass_flops(model, one),
            },
        )
