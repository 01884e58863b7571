"""FastLightGen's ablations, each a sweep over the same plan (methods.md 1.3-1.6): `flgbench ablate NAME`."""

from __future__ import annotations

from flgbench.contracts import FamilyPreset
from flgbench.sweeps import BUDGET, Ablation, Axis, Variant, axis
from flgbench.tuning import Range, Search

METHOD = "fastlightgen"
KEEPS = (1.0, 0.9, 0.7, 0.5)
FEW_STEPS = (1, 2, 3, 4, 8)
BETA2 = (0.0, 0.25, 0.5, 0.75)
SHARES = (0.5, 0.7, 1.0, 1.4)  # of the teacher's own guidance; the paper's 3.5 of WanX's 5 is 0.7
BUDGETS = (2_000.0, 4_000.0, 8_000.0, 16_000.0)


def alpha(preset: FamilyPreset) -> Ablation:
    """Table 4: stage II between ground truth (0) and distillation (1)."""
    return Ablation("alpha", METHOD, [axis("alpha", "recover.alpha", (0.0, 0.5, 0.7, 1.0))])


def beta2(preset: FamilyPreset) -> Ablation:
    """Table 5: guidance of the dense over the pruned teacher."""
    return Ablation("beta2", METHOD, [_beta2()])


def beta1(preset: FamilyPreset) -> Ablation:
    """Guidance over the negative caption, in shares of the teacher's own."""
    return Ablation("beta1", METHOD, [_beta1(preset)])


def guidance(preset: FamilyPreset) -> Ablation:
    """beta1 and beta2 as one grid."""
    return Ablation("guidance", METHOD, [_beta1(preset), _beta2()])


def keep(preset: FamilyPreset) -> Ablation:
    """Table 7: share of blocks that remain."""
    return Ablation("keep", METHOD, [axis("keep", "keep", (1.0, 0.7, 0.5))])


def steps(preset: FamilyPreset) -> Ablation:
    """Passes of the student, trained for that number."""
    return Ablation("steps", METHOD, [axis("steps", "match.steps", FEW_STEPS)])


def steps_keep(preset: FamilyPreset) -> Ablation:
    """Figure 1: steps and size together; the last column is stage II alone, sampled as the teacher."""
    many = preset.num_inference_steps
    last = [
        Variant(
            sweep="steps-keep",
            method="control_recover_ranked",
            point={"steps": many, "keep": kept},
            settings={"keep": kept},
        )
        for kept in KEEPS
        if kept < 1
    ]
    return Ablation("steps-keep", METHOD, [axis("steps", "match.steps", FEW_STEPS), axis("keep", "keep", KEEPS)], last)


def teacher(preset: FamilyPreset) -> Ablation:
    """Stage III with a weaker or a stronger teacher: both guidances together."""
    strengths = {"weak": (0.5, 0.0), "chosen": (0.7, 0.25), "strong": (1.0, 0.5), "strongest": (1.4, 0.75)}
    choices = {name: _guided(share * preset.guidance_scale, extra) for name, (share, extra) in strengths.items()}
    return Ablation("teacher", METHOD, [Axis("teacher", choices)])


def budget(preset: FamilyPreset) -> Ablation:
    """Length of the training: the paper warns of exaggerated motion and oversaturation after too much of it."""
    return Ablation("budget", METHOD, [Axis("budget", {value: {BUDGET: value} for value in BUDGETS})])


def _beta1(preset: FamilyPreset) -> Axis:
    own = {preset.beta1} if preset.beta1 else set()  # the default is a point of its sweep
    return axis("beta1", "match.beta1", sorted({share * preset.guidance_scale for share in SHARES} | own))


def _beta2() -> Axis:
    # The law's width goes with its mean, as the default's does: 0 is really none.
    return Axis("beta2", {value: {"match.beta2": value, "match.beta2_spread": value} for value in BETA2})


def _guided(first: float, second: float) -> dict[str, float]:
    return {"match.beta1": first, "match.beta2": second, "match.beta2_spread": second}


def search(preset: FamilyPreset) -> Search:
    """The paper's open problem: alpha, beta1 and beta2 at once; its optimum for WanX is (1, 3.5 of 5, 0.25)."""
    w = preset.guidance_scale
    return Search(
        METHOD,
        {
            "alpha": Range(("recover.alpha",), 0.0, 1.0, paper=1.0),
            "beta1": Range(("match.beta1",), 0.3 * w, 1.5 * w, paper=0.7 * w),
            "beta2": Range(("match.beta2", "match.beta2_spread"), 0.0, 0.8, paper=0.25),
        },
    )
