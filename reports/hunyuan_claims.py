"""What the paper says of HunyuanVideo: its two kinds of block, how much may be pruned, its students' guidance."""

from __future__ import annotations

from dataclasses import replace

from scipy.stats import mannwhitneyu

from reports.claim_tests import HUNYUAN, Claim, Verdict, best_of, better, of_hunyuan, variant, wanted
from reports.data import RunData

DOUBLE, SINGLE = "double", "single"
LEVEL = 0.05
BETA1, BETA2 = 2.0, 0.25


def claims(run: RunData) -> list[Claim]:
    """All of them; of another family's run none is tested."""
    found = [kinds_of_block(run), *pruning(run), *guidance(run)]
    if of_hunyuan(run):
        return found
    # What would decide them is said as for a run of the family.
    elsewhere = replace(run, run=run.run.model_copy(update={"settings": {"model": HUNYUAN}}), variants=(), importance=None)
    asked = (kinds_of_block(elsewhere), *pruning(elsewhere), *guidance(elsewhere))
    return [replace(claim, verdict="not tested") for claim in asked]


def kinds_of_block(run: RunData) -> Claim:
    """Stage I: the errors of skipping one double and one single block, by the exact rank test of the two groups."""
    statement, source = "HunyuanVideo: a double block matters more than a single one", "stage I"
    found = run.importance
    errors = {
        kind: [e for e, k in zip(found.x0_error, found.kinds, strict=True) if k == kind] if found and found.kinds else []
        for kind in (DOUBLE, SINGLE)
    }
    doubles, singles = errors[DOUBLE], errors[SINGLE]
    if not doubles or not singles:
        return Claim(statement, source, "not tested", decides=f"a run of {HUNYUAN} with a method that ranks blocks")
    test = mannwhitneyu(doubles, singles, method="exact")
    share = float(test.statistic) / (len(doubles) * len(singles))
    verdict: Verdict = "undecided" if test.pvalue > LEVEL else "reproduced" if share > 0.5 else "contradicted"
    statistic = f"{share:.0%} of the pairs: skipping the double block costs more"
    decides = "a model with more blocks" if verdict == "undecided" else ""
    return Claim(statement, source, verdict, statistic, f"rank test: p = {test.pvalue:.2g}", len(doubles + singles), decides)


def pruning(run: RunData) -> list[Claim]:
    """Table 7: dense 0.849, 30 % pruned 0.829, 50 % pruned 0.785."""
    of = {keep: variant(run, "keep", {"keep": keep}) for keep in (1.0, 0.7, 0.5)}
    told = (
        ("HunyuanVideo: the dense student is better than the 30 % pruned", "0.849 against 0.829", 1.0, 0.7),
        ("HunyuanVideo: 30 % pruned is better than 50 % pruned", "0.829 against 0.785", 0.7, 0.5),
    )
    return [
        better(run, statement, f"Table 7: {score}", of[more], of[less], without=wanted(run, "keep"))
        for statement, score, more, less in told
    ]


def guidance(run: RunData) -> list[Claim]:
    """The paper's choice for this model: beta1 = 2.0 and beta2 = 0.25."""
    source = "the paper's setting for HunyuanVideo"
    return [
        best_of(run, f"HunyuanVideo: beta1 = {BETA1:g} is the best", source, "beta1", {"beta1": BETA1}),
        best_of(run, f"HunyuanVideo: beta2 = {BETA2:g} is the best", source, "beta2", {"beta2": BETA2}),
    ]
