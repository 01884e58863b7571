"""Controls of pruning: which blocks go, what remains, and which steps they share with FastLightGen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flgbench.cells import Cell, Step
from flgbench.collect import _copy_importance
from flgbench.errors import UsageError
from flgbench.models.wanx import WanX
from flgbench.plan import Plan, plan
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.stage import Roles, TrainingData
from flgbench.store import Store
from methods.parts.importance import n_redundant
from methods.parts.recovery import Recovery, RecoverySettings
from methods.parts.selection import (
    Deletion,
    DeletionSettings,
    MiddleBlocks,
    MiddleSettings,
    RandomBlocks,
    RandomSettings,
    middle_blocks,
    random_blocks,
)
from reports import main_table
from reports.data import Cell as ReportedCell

NAMES = {
    "delete_middle": "DeleteMiddle",
    "delete_random": "DeleteRandom",
    "recover_middle": "RecoverMiddle",
    "recover_random": "RecoverRandom",
    "recover_ranked": "RecoverRanked",
}


@pytest.fixture
def controls() -> Iterator[tuple[str, ...]]:
    """The names of the controls, registered here where the installed package does not know them yet."""
    registry.cache_clear()
    for name in NAMES.keys() - set(registry("methods").names()):
        registry("methods").register(name, f"methods.deletion:{NAMES[name]}", "a test")
    yield tuple(NAMES)
    registry.cache_clear()


def cells(*methods: str, **changes: object) -> tuple[Plan, dict[str, Cell]]:
    made = plan(RunSettings(methods=methods, baselines=("euler",), **changes), {})  # type: ignore[arg-type]
    return made, {c.name: c for c in made.cells}


# Selection


def test_middle_blocks() -> None:
    assert middle_blocks(10, 3) == [3, 4, 5] and middle_blocks(9, 3) == [3, 4, 5] and middle_blocks(10, 4) == [3, 4, 5, 6]
    assert middle_blocks(4, 0) == [] and middle_blocks(4, 3) == [0, 1, 2]


def test_random_blocks_are_reproducible_and_equally_likely() -> None:
    state = torch.get_rng_state()
    draws = [random_blocks(10, 3, seed) for seed in range(4000)]
    assert draws[7] == random_blocks(10, 3, 7)
    assert torch.equal(state, torch.get_rng_state())  # the seed is its only randomness
    assert all(d == sorted(set(d)) and len(d) == 3 and set(d) <= set(range(10)) for d in draws)
    shares = torch.bincount(torch.tensor(draws).flatten(), minlength=10) / len(draws)
    assert (shares - 0.3).abs().max() < 4 * (0.3 * 0.7 / len(draws)) ** 0.5  # 4 standard errors
    assert len({tuple(d) for d in draws}) == 120  # all 10 over 3 sets occur


def test_selection_is_written_as_importance_writes_it(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    roles = Roles(tiny_model, tiny_data, {})
    for cls, settings, expected in (
        (MiddleBlocks, MiddleSettings(keep=0.5), [1, 2]),
        (RandomBlocks, RandomSettings(keep=0.5, seed=3), random_blocks(4, 2, 3)),
    ):
        cls(settings, roles).compute(tmp_path)
        written = json.loads((tmp_path / "importance.json").read_text())
        assert written == {"blocks": [0, 1, 2, 3], "redundant": expected}
        stage = Recovery(RecoverySettings(), Roles(tiny_model, tiny_data, {"importance": tmp_path}))
        assert stage.redundant == expected


# Deletion


def block_parameters(model: WanX) -> int:
    """Parameters of one Wan block of width d and feed-forward width f, by formula."""
    config = model.transformer.config
    d, f = config.num_attention_heads * config.attention_head_dim, config.ffn_dim
    attention = 4 * (d * d + d) + 2 * d  # q, k, v, out with biases; RMS norms of q and k
    return 2 * attention + 2 * d + (d * f + f) + (f * d + d) + 6 * d  # norm2 is affine; 6 modulation vectors


@pytest.mark.parametrize("redundant", [[], [1], [0, 3], [2, 1]])
def test_exactly_the_declared_blocks_remain(
    redundant: list[int], tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path
) -> None:
    (tmp_path / "importance.json").write_text(json.dumps({"redundant": redundant}))
    before = tiny_model.n_parameters
    Deletion(DeletionSettings(), Roles(tiny_model, tiny_data, {"importance": tmp_path})).compute(tmp_path)
    student = tiny_model.with_transformer(tmp_path / "transformer")
    kept = [b for b in range(4) if b not in redundant]
    assert student.kept_blocks == tuple(kept) and student.transformer.config.num_layers == len(kept)
    assert student.n_parameters == before - len(redundant) * block_parameters(tiny_model)
    assert tiny_model.n_parameters == before and tiny_model.kept_blocks == (0, 1, 2, 3)  # the teacher is left whole
    for position, block in enumerate(kept):
        for mine, theirs in zip(student.blocks[position].parameters(), tiny_model.blocks[block].parameters(), strict=True):
            assert torch.equal(mine, theirs)
    with torch.no_grad():  # deleting is skipping for ever
        x, t = tiny_data.latents[:2], torch.tensor([0.3, 0.9])
        condition = tiny_data.condition.select(slice(0, 2))
        skipped = tiny_model.velocity(x, t, condition, redundant)
        torch.testing.assert_close(student.velocity(x, t, condition), skipped, rtol=0, atol=1e-6)


def test_recovered_weights_are_what_is_deleted_from(tiny_model: WanX, tiny_data: TrainingData, tmp_path: Path) -> None:
    recovered = tiny_model.copy()
    with torch.no_grad():
        for parameter in recovered.transformer.parameters():
            parameter.add_(1)
    recovered.save(tmp_path / "recovered" / "transformer")
    (tmp_path / "importance.json").write_text(json.dumps({"redundant": [1]}))
    artifacts = {"importance": tmp_path, "recovered": tmp_path / "recovered"}
    Deletion(DeletionSettings(), Roles(tiny_model, tiny_data, artifacts)).compute(tmp_path)
    student = tiny_model.with_transformer(tmp_path / "transformer")
    weights = [b.attn1.to_q.weight for b in student.blocks]  # type: ignore[union-attr]
    for mine, block in zip(weights, (0, 2, 3), strict=True):
        assert torch.equal(mine, recovered.blocks[block].attn1.to_q.weight)  # type: ignore[union-attr]


# The methods


def test_they_are_controls_sampled_as_the_teacher(controls: tuple[str, ...]) -> None:
    _, found = cells(*controls)
    teacher = found["euler"].sampler
    for name in controls:
        cell = found[name]
        assert cell.kind == "control" and cell.student is not None
        assert cell.sampler == teacher and cell.sampler is not None and cell.sampler.nfe == 100
        assert all(i["note"].startswith("INFERRED") for i in cell.inferred)
    assert cells("dmd2")[1]["dmd2"].kind == "method"


def test_ranked_recovery_is_fastlightgens_own(controls: tuple[str, ...]) -> None:
    _, found = cells("fastlightgen", "recover_ranked")
    whole, part = dict(found["fastlightgen"].stages), dict(found["recover_ranked"].stages)
    assert {k: part[k] for k in ("importance", "recover")} == {k: whole[k] for k in ("importance", "recover")}
    assert list(part) == ["importance", "recover", "delete"]
    _, other = cells("fastlightgen", "recover_ranked", budget=9000)
    shorter = dict(other["recover_ranked"].stages)["recover"]
    assert shorter == dict(other["fastlightgen"].stages)["recover"] != part["recover"]


def test_controls_differ_in_their_blocks_alone(controls: tuple[str, ...]) -> None:
    made, found = cells(*controls)
    steps = {name: {stage: made.steps[key] for stage, key in found[name].stages} for name in controls}
    recoveries = [steps[name]["recover"] for name in controls if name.startswith("recover")]
    assert all(r.settings == recoveries[0].settings for r in recoveries)  # the same training, as long
    assert len({r.inputs["importance"] for r in recoveries}) == 3
    for which in ("middle", "random"):
        trained, untrained = steps[f"recover_{which}"], steps[f"delete_{which}"]
        assert trained["select"] is untrained["select"]  # one step serves both
        assert "recovered" not in untrained["delete"].inputs
        assert trained["delete"].inputs["recovered"] == trained["recover"].key


def test_the_seed_draws_other_blocks(controls: tuple[str, ...]) -> None:
    one, two = (cells("delete_random", method_settings={"delete_random": {"seed": s}})[1] for s in (0, 1))
    assert one["delete_random"].stages != two["delete_random"].stages
    with pytest.raises(UsageError, match="raise --budget"):
        cells("recover_middle", budget=100)


# Their place in the reports


def test_importance_report_reads_a_measured_ranking(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    contents = {"select": {"blocks": [0], "redundant": []}, "importance": {"blocks": [0], "x0_error": [1.0]}}
    steps = {}
    for name, content in contents.items():
        step = Step("train", name, {})
        steps[step.key] = step
        (store.start(step.key) / "importance.json").write_text(json.dumps(content))
        store.finish(step.key, {})
    _copy_importance(Plan(steps, []), store, tmp_path)
    assert json.loads((tmp_path / "importance.json").read_text()) == contents["importance"]


def test_a_control_with_a_network_is_not_said_to_have_none() -> None:
    told = {"cell": "delete_middle", "method": "", "label": "x", "kind": "control", "status": "blocked"}
    assert main_table.counted(None, ReportedCell(**told)).note == "no network"
    assert main_table.counted(None, ReportedCell(**told, num_inference_steps=50)).note == "not recorded"


def test_number_of_deleted_blocks_of_the_shipped_teacher() -> None:
    assert n_redundant(MiddleSettings().keep, 10) == 3
