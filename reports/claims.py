"""The paper's statements as tests on our results: reproduced, contradicted or undecided, never more than an interval allows.

What a run lacks the data for is not tested. A verdict holds for this run only: its model, its data, its budget. What would
decide an open one is said beside it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from reports import hunyuan_claims
from reports.aggregates import speedups
from reports.catalogue import times
from reports.claim_tests import Claim, Verdict, best_of, better, method, of_hunyuan, variant, wanted
from reports.data import RunData
from reports.tables import md

JOINT, MEASURED = "FastLightGen", 31.3  # times: 885 s / 28.3 s of Table 2
NOT_FOUND = "HunyuanVideo table: its numbers were not found"


def claims(run: RunData) -> list[Claim]:
    """All claims in the order of the paper."""
    return [claim for make in CLAIMS for claim in make(run)]


def quality_is_kept(run: RunData) -> list[Claim]:
    """Table 2: the student's average is 0.794, its teacher's 0.790."""
    statement, source = "The pruned 4-step student is as good as its teacher", "Tables 1 and 2: 0.794 against 0.790"
    source = NOT_FOUND if of_hunyuan(run) else source
    return [better(run, statement, source, method(run, "fastlightgen"), run.reference, slack=0.01)]


def better_than_step_distillation(run: RunData) -> list[Claim]:
    """Table 2: 0.794 against 0.716 (DMD2) and 0.684 (LCM), dense students of as many steps."""
    mine = method(run, "fastlightgen")
    return [
        better(
            run,
            f"{JOINT} is better than {label}",
            NOT_FOUND if of_hunyuan(run) else f"Table 2: 0.794 against {score}",
            mine,
            method(run, name),
        )
        for name, label, score in (("dmd2", "DMD2", 0.716), ("lcm", "LCM", 0.684))
    ]


def better_than_few_steps(run: RunData) -> list[Claim]:
    """MagicDistillation's Table 1: 4 distilled passes score 0.806 (DMD2), 4 Euler steps 0.677."""
    plain = [c for c in run.cells if c.kind == "baseline" and c.sampler == "euler" and c.num_inference_steps == 4]
    students = [c for c in run.cells if c.kind == "method" and c.num_inference_steps == 4]
    return [
        better(run, f"{mine.label} is better than {other.label}", "arXiv 2503.13319 Table 1, for DMD2", mine, other)
        for mine in students
        for other in plain
    ]


def speed(run: RunData) -> list[Claim]:
    """Table 2: 885 s against 28.3 s, 31.3 times; Figure 1: 35.7 times by arithmetic."""
    statement, source = "30 % pruning and 4 steps make denoising about 35 times faster", "Figure 1: 35.7×; Table 2: 31.3×"
    if of_hunyuan(run):
        why = "a run of the family wanx, whose teacher takes two passes a step: the paper's times of this one were not found"
        return [Claim(statement, source, "not tested", decides=why)]
    cell = method(run, "fastlightgen")
    ratio = speedups(run, cell).denoise if cell else None
    if cell is None or ratio is None or ratio.low is None or ratio.high is None:
        why = ratio.reason if ratio else ""
        return [Claim(statement, source, "not tested", decides=why or f"a run with {JOINT} and latency")]
    verdict: Verdict = "reproduced" if ratio.low >= MEASURED else "contradicted" if ratio.high < MEASURED else "undecided"
    interval = f"[{times(ratio.low)}, {times(ratio.high)}]"
    decides = f"more timed pairs: {times(MEASURED)} is inside the interval" if verdict == "undecided" else ""
    return [Claim(statement, source, verdict, f"{times(ratio.value or math.nan)} denoise", interval, ratio.n, decides)]


def outer_blocks_matter_most(run: RunData) -> list[Claim]:
    """Stage I: block importance is U-shaped."""
    statement, source = "Importance is U-shaped: the first and the last blocks matter most", "stage I"
    found = run.importance
    if found is None or len(found.blocks) < 4:
        return [Claim(statement, source, "not tested", decides="a run with a method that ranks blocks")]
    errors, n = found.x0_error, len(found.blocks)
    ranks = {i: 1 + sum(other > errors[i] for other in errors) for i in (0, n - 1)}
    worst = max(ranks.values())
    # By chance two given blocks of n are the two highest once in n (n - 1) / 2 times.
    verdict: Verdict = "reproduced" if worst == 2 else "contradicted" if worst > n / 2 else "undecided"
    statistic = f"ranks {ranks[0]} (first) and {ranks[n - 1]} (last) of {n}"
    by_chance = f"both highest by chance: 1 in {n * (n - 1) // 2}" if worst == 2 else ""
    decides = "more clips in stage I, or a deeper model" if verdict == "undecided" else ""
    return [Claim(statement, source, verdict, statistic, by_chance, n, decides)]


def of_sweeps(run: RunData) -> list[Claim]:
    """What takes the same method at several settings: `flgbench ablate`, `flgbench paper`."""
    return [
        best_of(
            run,
            "Distillation alone (alpha = 1) is the best mixture of stage II",
            "Table 4: 0.791 against 0.780 to 0.788",
            "alpha",
            {"alpha": 1.0},
        ),
        better(
            run,
            "beta2 = 0.25 is better than 0",
            "Table 5, WanX: 0.820 against 0.812",
            variant(run, "beta2", {"beta2": 0.25}),
            variant(run, "beta2", {"beta2": 0.0}),
            without=wanted(run, "beta2"),
        ),
        better(
            run,
            "A large beta2 (0.75) makes more motion than 0",
            "Table 5, WanX: dynamic degree 1.000 against 0.459",
            variant(run, "beta2", {"beta2": 0.75}),
            variant(run, "beta2", {"beta2": 0.0}),
            metric="motion_ratio",
            without=wanted(run, "beta2"),
        ),
        better(
            run,
            "A large beta2 (0.75) exaggerates motion: there is more than in real clips",
            "Table 5, WanX: dynamic degree 1.000",
            variant(run, "beta2", {"beta2": 0.75}),
            method(run, "real"),
            metric="motion_ratio",
            without=wanted(run, "beta2"),
        ),
        better(
            run,
            "A weaker teacher makes a better student",
            "stage III",
            variant(run, "teacher", {"teacher": "weak"}),
            variant(run, "teacher", {"teacher": "strongest"}),
            without=wanted(run, "teacher"),
        ),
        best_of(
            run,
            "4 steps with 70 % kept is the best of all that are as fast",
            "Figure 1, WanX",
            "steps-keep",
            {"steps": 4, "keep": 0.7},
            as_fast=True,
        ),
    ]


CLAIMS: tuple[Callable[[RunData], list[Claim]], ...] = (
    quality_is_kept,
    better_than_step_distillation,
    better_than_few_steps,
    speed,
    outer_blocks_matter_most,
    of_sweeps,
    hunyuan_claims.claims,
)


def build(run: RunData, out: Path) -> list[Path]:
    """The claims with their verdicts: tables/claims.md and claims.csv."""
    folder = out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f.name for f in fields(Claim)]
    found = [[("" if v is None else str(v)) for v in (getattr(c, n) for n in names)] for c in claims(run)]
    with (folder / "claims.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(found)
    head = ("Statement", "Source", "Verdict", "Statistic", "95 % interval", "n", "What would decide")
    lines = ["| " + " | ".join(head) + " |", "|" + " :-- |" * len(head)]
    lines += ["| " + " | ".join(md(cell) or "—" for cell in row) + " |" for row in found]
    (folder / "claims.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [folder / "claims.md", folder / "claims.csv"]
