"""The plan is pure and shares what it can; the runners isolate failures."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flgbench.cells import Step
from flgbench.contracts import StageSpec
from flgbench.errors import StageFailure, UsageError
from flgbench.plan import Plan, plan
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.runner import BLOCKED, CACHED, DONE, FAILED, Status, new_pool, run_inline, run_local
from flgbench.store import Store

HARDWARE = {"processor": "test", "cores": 2}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make_plan(**changes: Any) -> Plan:
    base: dict[str, Any] = {"methods": ("dmd2", "fastlightgen"), "baselines": tuple(registry("baselines").groups()["all"])}
    return plan(RunSettings(**(base | changes)), HARDWARE)


def stages(made: Plan, cell: str) -> dict[str, str]:
    return dict(next(c for c in made.cells if c.name == cell).stages)


def test_plan_is_pure() -> None:
    one, two = make_plan(), make_plan()
    assert list(one.steps) == list(two.steps) and one.cells == two.cells
    for position, step in enumerate(one.steps.values()):
        assert set(step.inputs.values()) <= set(list(one.steps)[:position]), "parents come before children"
    kinds = [s.kind for s in one.steps.values()]
    cells = len(registry("baselines").groups()["all"]) + 2
    assert {k: kinds.count(k) for k in kinds} == {
        "teacher": 1, "data": 2, "train": 4, "sample": cells, "quality": cells, "latency": 1
    }  # fmt: skip


def test_groups_of_names() -> None:
    groups = registry("methods").groups()
    assert "dmd2" in groups["all"] and "control_delete_middle" in groups["controls"] and not groups["none"]
    assert sorted(groups["all"] + groups["controls"]) == registry("methods").names()


def test_a_setting_changes_only_what_depends_on_it() -> None:
    before, after = make_plan(), make_plan(method_settings={"dmd2": {"lr": 1e-6}})
    gone = {(s.kind, s.name) for k, s in before.steps.items() if k not in after.steps}
    assert gone == {("train", "match"), ("sample", "dmd2"), ("quality", "dmd2")}
    assert stages(before, "dmd2") != stages(after, "dmd2")
    assert stages(before, "fastlightgen") == stages(after, "fastlightgen")


def test_latency_waits_for_other_networks_only() -> None:
    """Other weights take as long: a dense step student is timed with the teacher's, a pruned one with its own."""
    methods = ("dmd2", "lcm", "magic_distillation", "fastlightgen", "icmd")
    for settings, waits_for in (
        ({}, {"fastlightgen", "icmd"}),
        ({"lcm": {"keep": 0.7}}, {"fastlightgen", "icmd", "lcm"}),
    ):
        made = plan(RunSettings(methods=methods, baselines=("euler",), method_settings=settings), {})
        latency = next(s for s in made.steps.values() if s.kind == "latency")
        students = {f"student:{c.name}": c.student for c in made.cells if c.name in waits_for}
        assert {k: v for k, v in latency.inputs.items() if k.startswith("student:")} == students
        assert set(latency.settings["samplers"]) == {"euler", *methods}


def test_an_ablation_of_stage_three_reuses_one_and_two() -> None:
    before = stages(make_plan(), "fastlightgen")
    after = stages(make_plan(method_settings={"fastlightgen": {"match": {"beta2": 0.5}}}), "fastlightgen")
    assert before["importance"] == after["importance"] and before["recover"] == after["recover"]
    assert before["match"] != after["match"]
    pruned = stages(make_plan(method_settings={"fastlightgen": {"keep": 0.5}}), "fastlightgen")
    assert all(pruned[name] != before[name] for name in before)  # while another keep changes everything below it


def test_hardware_keys_latency_and_nothing_else() -> None:
    run = RunSettings(methods=("dmd2",), baselines=("euler",))
    one, two = plan(run, HARDWARE), plan(run, HARDWARE | {"cores": 64})
    assert {one.steps[k].kind for k in one.steps.keys() - two.steps.keys()} == {"latency"}


def test_seed_and_budget_change_what_is_trained() -> None:
    base = make_plan()
    for change in ({"seed": 1}, {"budget": 5000.0}):
        other = make_plan(**change)
        kept = {s.kind for k, s in other.steps.items() if k in base.steps}
        assert {"teacher", "data"} <= kept and not any(s.kind == "train" and "loop" in s.settings and k in base.steps
                                                        for k, s in other.steps.items())  # fmt: skip


def test_settings_of_an_absent_method_are_refused() -> None:
    with pytest.raises(UsageError, match="'dmd2' is not among the methods of this run"):
        make_plan(methods=("fastlightgen",), method_settings={"dmd2": {"lr": 1}})


def test_every_default_without_a_source_is_shown() -> None:
    cells = {c.name: c for c in make_plan().cells}
    shown = {i["setting"] for i in cells["fastlightgen"].inferred}
    assert {"recover.target", "match.beta2_spread", "importance.clips", "recovery_share"} <= shown
    assert all(i["note"].startswith("INFERRED") for c in cells.values() for i in c.inferred)
    assert StageSpec.__dataclass_fields__["budget"].default == 0.0  # a stage without a budget is not a trained one


# Runners


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A step kind that writes what it read, or fails: `execute` finds it as it finds the built-in ones."""
    module = ModuleType("flgbench.steps.probe")

    def run(step: Step, store: Store, folder: Path) -> dict[str, Any]:
        if step.settings.get("fail"):
            raise StageFailure("NaN", "by request")
        read = [(store.path(key) / "out.txt").read_text() for key in step.inputs.values()]
        (folder / "out.txt").write_text(step.name + "".join(read))
        return {"read": len(read)}

    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flgbench.steps.probe", module)
    yield


def family_of_steps(kind: str = "probe") -> tuple[Plan, dict[str, str]]:
    """root -> bad -> child -> grandchild, and root -> good."""
    steps: dict[str, Step] = {}
    key: dict[str, str] = {}
    for name, parent in (("root", ""), ("bad", "root"), ("child", "bad"), ("grandchild", "child"), ("good", "root")):
        step = Step(kind, name, {"fail": name == "bad"}, {"from": key[parent]} if parent else {})
        steps[step.key], key[name] = step, step.key
    return Plan(steps, []), key


def test_a_failing_step_blocks_only_its_children(probe: None, store: Store) -> None:
    made, key = family_of_steps()
    changes: list[dict[str, Status]] = []
    status = run_inline(made, store, changes.append)
    assert {n: status[k].state for n, k in key.items()} == {
        "root": DONE, "bad": FAILED, "child": BLOCKED, "grandchild": BLOCKED, "good": DONE
    }  # fmt: skip
    assert status[key["bad"]].reason == "StageFailure: NaN: by request" and changes
    assert key["bad"] in status[key["child"]].reason
    assert (store.path(key["good"]) / "out.txt").read_text() == "goodroot"
    assert store.facts(key["good"])["read"] == 1
    assert [e["event"] for e in store.events(key["bad"])] == ["started", "failed"]
    assert not store.is_done(key["bad"])  # a failure is never cached

    again = run_inline(made, store, lambda s: None)
    assert again[key["root"]].state == again[key["good"]].state == CACHED and again[key["bad"]].state == FAILED


def test_local_runner_isolates_failures(probe: None, store: Store) -> None:
    """In real worker processes, which do not know the step kind of this test: what is not cached fails there."""
    made, key = family_of_steps()
    run_inline(Plan({key["root"]: made.steps[key["root"]]}, []), store, lambda s: None)
    status = run_local(made, store, slots=1, cores=1, on_change=lambda s: None)
    states = {name: status[k].state for name, k in key.items()}
    assert states == {"root": CACHED, "bad": FAILED, "child": BLOCKED, "grandchild": BLOCKED, "good": FAILED}
    assert "ModuleNotFoundError" in status[key["good"]].reason


def test_each_slot_sees_its_own_gpu() -> None:
    with new_pool(2, ["4", "7"]) as pool:
        # Each call outlasts the start of a worker, so that none takes both.
        seen = list(pool.map(_device_after, [3.0] * 2))
    assert sorted(seen) == ["4", "7"]


def _device_after(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ["CUDA_VISIBLE_DEVICES"]


def test_several_trainings_of_a_method() -> None:
    """Only what depends on the training is repeated: not stage I, not an untrained method, not the timing."""
    settings = {"methods": ("fastlightgen", "f3_pruning"), "baselines": ("euler",)}
    once, thrice = plan(RunSettings(**settings), {}), plan(RunSettings(**settings, seeds=3), {})
    trainings = ["fastlightgen", "fastlightgen-seed1", "fastlightgen-seed2"]
    assert [c.name for c in thrice.cells] == ["euler", *trainings, "f3_pruning"]
    assert set(once.steps) < set(thrice.steps)
    new = [thrice.steps[key] for key in thrice.steps if key not in once.steps]
    assert sorted(f"{s.kind} {s.name}" for s in new) == sorted(
        f"{kind} {name}"
        for seed in (1, 2)
        for kind, name in (
            ("train", "recover"),
            ("train", "match"),
            ("sample", f"fastlightgen-seed{seed}"),
            ("quality", f"fastlightgen-seed{seed}"),
        )
    )
    assert {c.method for c in thrice.cells if c.kind == "method"} == {"fastlightgen", "f3_pruning"}
