"""Published settings of large trainings, by name: `--recipe NAME` (methods.md 2-5; [P] first-hand, [S] second-hand).

What a source does not tell, or what has no place here, is said at the value. Without torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flgbench.recipes import Recipe

Values = dict[str, tuple[Any, str]]
CONSTANT: Values = {
    "training.decay": (0.0, "INFERRED: the sources name one learning rate, so it stays constant"),
}
SELF_FORCING = "Self-Forcing-Plus, I2V-14B [P]"
FASTVIDEO = "FastVideo [P]"
FASTGEN = "NVlabs/FastGen [P]"
DMD2_WANX = "azuresky03/DMD2_wanx [P]"


def fastlightgen_paper() -> Recipe:
    """FastLightGen's own settings: 16 GPUs, stage II 4,000 iterations at 1e-5, stage III 1,000 at 5e-7 (2603.01685)."""
    return Recipe(
        "14b",
        16,
        {
            "fastlightgen.keep": (0.7, "abstract of 2603.01685: 30 % pruned [P]"),
            "fastlightgen.importance.clips": (64, "INFERRED: methods.md 2.1 proposes 64 to 256; the paper's was not found"),
            "fastlightgen.importance.times": (10, "INFERRED: methods.md 2.1; the paper's was not found"),
            "fastlightgen.recover.lr": (1e-5, "2603.01685 [S]"),
            "fastlightgen.recover.alpha": (1.0, "2603.01685, Table 4 [S]"),
            "fastlightgen.recover.skip_probability": (0.5, "2603.01685 [S]"),
            "fastlightgen.match.lr": (5e-7, "2603.01685 [S]"),
            "fastlightgen.match.fake_lr": (
                5e-7,
                "INFERRED: DMD2's SDXL has one rate for both; the paper's was not found",
            ),
            "fastlightgen.match.fake_updates": (5, "INFERRED: DMD2; the paper's was not found"),
            "fastlightgen.match.steps": (4, "2603.01685: 4 passes [S]"),
            "fastlightgen.match.shift": (5.0, "INFERRED: the four times of Wan's other recipes; the paper's were not found"),
            "fastlightgen.match.beta1": (3.5, "2603.01685, Table 5 [S]"),
            "fastlightgen.match.beta1_spread": (1.0, "INFERRED: the range of the uniform law was not found"),
            "fastlightgen.match.beta2": (0.25, "2603.01685, Table 5 [S]"),
            "fastlightgen.match.beta2_spread": (0.25, "INFERRED: the range of the uniform law was not found"),
            "training.batch": (16, "INFERRED: one clip on each of the paper's 16 GPUs; its batch was not found"),
            "training.iterations.recover": (4000, "2603.01685 [S]"),
            "training.iterations.match": (1000, "2603.01685 [S]"),
            **CONSTANT,
        },
        budget=400_000,  # about what these iterations take, with the 25,600 of the ranking
    )


def fastlightgen_paper_13b() -> Recipe:
    """FastLightGen's settings for its guidance-distilled 13B model: beta1 2, beta2 0.25, the rest as for 14B."""
    paper = fastlightgen_paper()
    own: Values = {
        "fastlightgen.match.beta1": (2.0, "2603.01685, its optimum for the 13B model [S]"),
        "fastlightgen.match.beta1_spread": (0.6, "INFERRED: as wide for its mean as for the 14B model"),
        "fastlightgen.match.beta2": (0.25, "2603.01685, its optimum for the 13B model [S]"),
        "fastlightgen.match.shift": (7.0, "INFERRED: the teacher's own; the paper's times were not found"),
    }
    return replace(paper, scale="13b", values={**paper.values, **own})


def dmd2_self_forcing_plus() -> Recipe:
    """DMD2 of Wan2.1-I2V-14B to 4 passes, as in Self-Forcing-Plus: 2e-6 and 4e-7, batch 64, EMA from iteration 200."""
    return Recipe(
        "14b",
        64,
        {
            "dmd2.steps": (4, SELF_FORCING),
            "dmd2.shift": (5.0, f"1000, 750, 500, 250 warped by shift 5: {SELF_FORCING}"),
            "dmd2.beta1": (7.0, f"w' = 6, which is w = 7: {SELF_FORCING}"),
            "dmd2.lr": (2e-6, SELF_FORCING),
            "dmd2.fake_lr": (4e-7, SELF_FORCING),
            "dmd2.fake_updates": (5, SELF_FORCING),
            "dmd2.backward_simulation": (True, SELF_FORCING),
            "dmd2.gan_weight": (0.0, SELF_FORCING),
            "training.batch": (64, SELF_FORCING),
            "training.sized.ema_decay": (0.99, SELF_FORCING),
            "training.sized.ema_from": (200, SELF_FORCING),
            "training.iterations.match": (4000, "INFERRED: FastVideo's number; this source's was not found"),
            **CONSTANT,
        },
    )


def dmd2_fastvideo_1_3b() -> Recipe:
    """DMD2 of Wan2.1-1.3B to 3 passes, as in FastVideo: shift 8, 4,000 iterations, batch 64, from noised clips."""
    return Recipe(
        "1.3b",
        64,
        {
            "dmd2.steps": (3, FASTVIDEO),
            "dmd2.shift": (
                8.0,
                f"its 1000, 757, 522 are not uniform before the shift, as ours are: {FASTVIDEO}",
            ),
            "dmd2.beta1": (4.5, f"w' = 3.5, which is w = 4.5: {FASTVIDEO}"),
            "dmd2.lr": (2e-6, FASTVIDEO),
            "dmd2.fake_lr": (2e-6, f"one rate is told: {FASTVIDEO}"),
            "dmd2.fake_updates": (5, FASTVIDEO),
            "dmd2.backward_simulation": (False, f"noised synthetic clips: {FASTVIDEO}"),
            "dmd2.gan_weight": (0.0, FASTVIDEO),
            "training.batch": (64, FASTVIDEO),
            "training.iterations.match": (4000, FASTVIDEO),
            **CONSTANT,
        },
    )


def dmd2_fastvideo_5b() -> Recipe:
    """DMD2 of Wan2.2-TI2V-5B to 3 passes, as in FastVideo: 4e-6 and 2e-6, shift 5, without data."""
    return Recipe(
        "5b",
        64,
        {
            "dmd2.steps": (3, FASTVIDEO),
            "dmd2.shift": (
                5.0,
                f"its 1000, 757, 522 are not uniform before the shift, as ours are: {FASTVIDEO}",
            ),
            "dmd2.beta1": (4.0, f"w' = 3, which is w = 4: {FASTVIDEO}"),
            "dmd2.lr": (4e-6, FASTVIDEO),
            "dmd2.fake_lr": (2e-6, FASTVIDEO),
            "dmd2.fake_updates": (5, FASTVIDEO),
            "dmd2.backward_simulation": (True, FASTVIDEO),
            "dmd2.gan_weight": (0.0, FASTVIDEO),
            "training.batch": (64, "INFERRED: as its recipe of 1.3B"),
            "training.iterations.match": (4000, "INFERRED: as its recipe of 1.3B"),
            **CONSTANT,
        },
    )


def dmd2_fastgen() -> Recipe:
    """DMD2 of Wan2.1-I2V-14B to 2 passes, as in FastGen: 1e-5 for both, with its adversarial term, 5,000 iterations."""
    return Recipe(
        "14b",
        64,
        {
            "dmd2.steps": (2, FASTGEN),
            "dmd2.shift": (5.0, f"0.999 and 0.833 are the uniform times 1, 0.5 under shift 5: {FASTGEN}"),
            "dmd2.beta1": (5.0, FASTGEN),
            "dmd2.lr": (1e-5, FASTGEN),
            "dmd2.fake_lr": (1e-5, FASTGEN),
            "dmd2.fake_updates": (5, FASTGEN),
            "dmd2.backward_simulation": (False, f"noised real latents: {FASTGEN}"),
            "dmd2.gan_weight": (0.03, f"on features of three blocks, ours of one: {FASTGEN}"),
            "training.batch": (64, "INFERRED: the usual batch of these recipes; this source's was not found"),
            "training.iterations.match": (5000, FASTGEN),
            **CONSTANT,
        },
    )


def dmd2_wanx_lora() -> Recipe:
    """DMD2 with one backbone, the critic a LoRA of rank 128 on the teacher, as in DMD2_wanx: 5 passes, 500 iterations."""
    return Recipe(
        "14b",
        8,
        {
            "dmd2.steps": (5, DMD2_WANX),
            "dmd2.shift": (7.0, f"of the generator; ours shifts the critic's times as well: {DMD2_WANX}"),
            "dmd2.beta1": (1.0, f"the teacher is guidance-distilled: {DMD2_WANX}"),
            "dmd2.lr": (1e-6, DMD2_WANX),
            "dmd2.fake_lr": (2e-5, DMD2_WANX),
            "dmd2.fake_updates": (4, DMD2_WANX),
            "dmd2.gan_weight": (0.1, DMD2_WANX),
            "dmd2.critic": ("lora", DMD2_WANX),
            "dmd2.critic_rank": (128, DMD2_WANX),
            "training.batch": (8, "INFERRED: one clip on each GPU of a node; the source's was not found"),
            "training.iterations.match": (500, f"best at 500, overexposed at 1,000: {DMD2_WANX}"),
            **CONSTANT,
        },
    )


def lcm_fastvideo() -> Recipe:
    """Consistency distillation of Wan2.1 to 8 passes, as in FastVideo (PCM): 1e-6, shift 3, 320 iterations."""
    return Recipe(
        "14b",
        32,
        {
            "lcm.distill.steps": (8, FASTVIDEO),
            "lcm.distill.shift": (3.0, FASTVIDEO),
            "lcm.distill.guidance_scale": (1.0, f"guidance of the solver is off: {FASTVIDEO}"),
            "lcm.distill.lr": (1e-6, FASTVIDEO),
            "lcm.distill.ema_decay": (0.0, f"the target is the student itself: {FASTVIDEO}"),
            "training.batch": (32, "INFERRED: one clip on each of 32 GPUs, those of its HunyuanVideo recipe"),
            "training.iterations.distill": (320, FASTVIDEO),
            **CONSTANT,
        },
    )


def magic_distillation_14b() -> Recipe:
    """MagicDistillation of a 14B model: the paper's weak scale, the rates and the rank of DMD2_wanx (2503.13319)."""
    return Recipe(
        "14b",
        8,
        {
            "magic_distillation.match.weak": (0.25, "2503.13319, its sweep [P]"),
            "magic_distillation.match.rank": (128, f"INFERRED: {DMD2_WANX}"),
            "magic_distillation.match.lr": (1e-6, f"INFERRED: {DMD2_WANX}"),
            "magic_distillation.match.fake_lr": (2e-5, f"INFERRED: {DMD2_WANX}"),
            "magic_distillation.match.fake_updates": (5, "INFERRED: DMD2; DMD2_wanx has 4"),
            "magic_distillation.match.shift": (5.0, "INFERRED: the four times of Wan's other recipes"),
            "training.batch": (8, "INFERRED: one clip on each GPU of a node; the paper's was not found"),
            "training.iterations.match": (1000, "INFERRED: FastLightGen's stage III; the paper's was not found"),
            **CONSTANT,
        },
    )
