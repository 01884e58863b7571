"""One command for several families: one queue, one run each, one report; and every wrong word about one of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import Flgbench, assert_refused
from report_runs import only
from toy_hunyuan import build, installed

import flgbench as package
from flgbench import runs, steps
from flgbench.cells import Step
from flgbench.contracts import FamilyPreset
from flgbench.plan import Plan, joined
from flgbench.runner import DONE, run_local
from flgbench.sampling import SamplerSettings
from flgbench.several import each_family, settings_of
from flgbench.store import Store, write_json
from slurm import scheduler
from slurm.queue import Queue
from slurm.state import cancel_run

BOTH = ("--model", "wanx,hunyuan")
SMALL = ("--methods", "none", "--baselines", "euler,euler-4", "--conditions", "2", "--pairs", "3", "--executor", "inline")
WRONG = {
    "a family twice": (["--model", "wanx,wanx"], ["--model wanx,wanx", "given twice"]),
    "an unknown family": (["--model", "wanx,hunyan"], ["no family 'hunyan'", "did you mean 'hunyuan'"]),
    "an empty name": (["--model", "wanx,"], ["no family ''"]),
    "a scale of one": ([*BOTH, "--scale", "14b"], ["--scale 14b: family 'hunyuan' has"]),
    "scales in the wrong order": ([*BOTH, "--scale", "tiny,14b"], ["--scale 14b: family 'hunyuan' has"]),
    "too many scales": ([*BOTH, "--scale", "tiny,tiny,tiny"], ["--scale tiny,tiny,tiny", "one for each"]),
    "two scales of one family": (["--scale", "tiny,14b"], ["--scale tiny,14b", "one for all"]),
    "a checkpoint": ([*BOTH, "--checkpoint", "."], ["--checkpoint is of one family", "one by one"]),
    "a revision": ([*BOTH, "--revision", "main"], ["--revision is of one family"]),
    "encoded clips": ([*BOTH, "--data", "encoded"], ["--data is of one family"]),
    "external students": ([*BOTH, "--external", "students.toml"], ["--external is of one family"]),
    "another's setting": (["--set", "hunyuan:dmd2.lr=1"], ["'hunyuan' is not among the families of this run: wanx"]),
    "no such family's setting": ([*BOTH, "--set", "wan:dmd2.lr=1"], ["'wan' is not among the families"]),
    "one family's setting twice": (
        [*BOTH, "--set", "wanx:dmd2.lr=1", "--set", "wanx:dmd2.lr=2"],
        ["--set wanx:dmd2.lr is given twice"],
    ),
    "a setting that the method does not have": ([*BOTH, "--set", "wanx:dmd2.lrr=1"], ["dmd2 has no setting 'lrr'"]),
    "an embedded scale": (["--set", "euler.embedded_guidance=2"], ["euler has no setting 'embedded_guidance'"]),
    "an embedded scale of both": ([*BOTH, "--set", "euler.embedded_guidance=2"], ["euler has no setting"]),
    "a guided teacher guided again": ([*BOTH, "--teacher-guidance", "cfg"], ["family 'wanx' is guided so anyway"]),
    "not defined for one": (
        ["--model", "hunyuan", "--methods", "f3_pruning_b", "--baselines", "none"],
        ["f3_pruning_b removes"],
    ),
}


@pytest.fixture(scope="module")
def two_families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tiny wanx as shipped beside a toy hunyuan; teachers with 2 steps, which is no less of a run."""
    short = lambda self: SamplerSettings(num_inference_steps=2, guidance_scale=1.0 if self.guidance_is_embedded else 2.0)  # noqa: E731
    with installed(build(), tmp_path_factory.mktemp("weights")), pytest.MonkeyPatch.context() as patch:
        patch.setattr(FamilyPreset, "teacher_sampler", short)
        yield


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case: str, two_families: None, flgbench: Flgbench, tmp_path: Path) -> None:
    arguments, words = WRONG[case]
    assert_refused(flgbench("run", "--out", str(tmp_path / "out"), *arguments), *words)
    assert not (tmp_path / "out").exists(), "before any work"


def test_settings_of_all_and_of_one() -> None:
    given = ["dmd2.lr=1", "dmd2.steps=2", "hunyuan:dmd2.lr=3", "hunyuan:lcm.keep=0.5"]
    wanx, hunyuan = each_family("wanx,hunyuan", "tiny", given)
    assert (wanx.model, wanx.scale, wanx.assignments) == ("wanx", "tiny", ("dmd2.lr=1", "dmd2.steps=2"))
    assert hunyuan.assignments == ("dmd2.steps=2", "dmd2.lr=3", "lcm.keep=0.5")
    told = {"hunyuan:dmd2": {"lr": 3}, "dmd2": {"lr": 1, "steps": 2}}
    assert settings_of(told, "wanx", ["wanx", "hunyuan"]) == {"dmd2": {"lr": 1, "steps": 2}}
    assert settings_of(told, "hunyuan", ["wanx", "hunyuan"]) == {"dmd2": {"lr": 3, "steps": 2}}


def toy(family: str, count: int) -> Plan:
    found = [Step("toy", f"step{i}", {"model": family}) for i in range(count)]
    return Plan({step.key: step for step in found}, [])


def test_steps_of_both_share_the_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One queue: while a step of one family runs in one slot, one of the other does in the second."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here, here / "toy_steps", here.parent))))
    made = joined([toy("wanx", 1), toy("hunyuan", 2)])
    assert list(made.titles().values()) == ["toy wanx step0", "toy hunyuan step0", "toy hunyuan step1"]
    seen: list[set[str]] = []
    status = run_local(
        made, Store(tmp_path / "store"), 2, 2, lambda s: seen.append({k for k in s if s[k].state == "running"})
    )
    assert {s.state for s in status.values()} == {DONE}
    titles = made.titles()
    together = [{titles[k].split()[1] for k in running} for running in seen]
    assert {"wanx", "hunyuan"} in together


def run_both(out: Path) -> package.api.Results:
    threads = torch.get_num_threads()
    try:
        small = {"conditions": 2, "repeated_conditions": 0, "pairs": 3, "training_clips": 16}
        return package.run("none", "euler,euler-4", model="wanx,hunyuan", out=out, **small)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def both(two_families: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, package.api.Results]:
    """A whole run of both from Python, which was stopped once: called again it went on, and did no step twice."""
    out, real, done = tmp_path_factory.mktemp("both"), steps.execute, []

    def until_the_fourth(step: Step, store: Store) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(step.key)
        real(step, store)

    with pytest.MonkeyPatch.context() as patch:
        only(patch, "main_table", "pareto")
        patch.setattr(steps, "execute", until_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            run_both(out)
        patch.setattr(steps, "execute", lambda step, store: (done.append(step.key), real(step, store)))
        run = run_both(out)
    assert len(done) == len(set(done)) == len(json.loads((run.folder / "plan.json").read_text())["steps"])
    return out, run


def test_one_command_runs_both(both: tuple[Path, Any]) -> None:
    out, run = both
    assert not run.failed and list(run.families) == ["wanx", "hunyuan"]
    names = [each.folder.name for each in run.families.values()]
    assert [name.rpartition("-")[0] for name in names] == ["wanx-tiny", "hunyuan-tiny"]
    assert run.folder.name.startswith("wanx+hunyuan-tiny-") and run.folder.parent == out / "runs"
    assert set(run.table["family"]) == set(run.main["family"]) == {"wanx", "hunyuan"}
    assert len(run.main) == 4 and set(run.families["hunyuan"].table["family"]) == {"hunyuan"}
    page = run.report.read_text()
    assert "geometric mean" in page and page.count('alt="Quality against latency"') == 2
    families = pd.read_csv(run.folder / "report" / "tables" / "families.csv").set_index("cell")
    each = [families.loc["euler-4", f"{name}:denoise"] for name in ("wanx", "hunyuan")]
    assert families.loc["euler-4", "denoise"] == pytest.approx((each[0] * each[1]) ** 0.5, rel=1e-3)


def test_a_family_alone_is_the_same_run(both: tuple[Path, Any]) -> None:
    """Nothing is trained or measured again, in the same folder."""
    out, run = both
    settings = runs.build_settings(
        runs.RunSettings, json.loads((run.families["wanx"].folder / "plan.json").read_text())["settings"], "run"
    )
    work = runs.checked([settings], out)
    assert work.folder.name == run.families["wanx"].folder.name
    assert all(s.state == "cached" for s in runs.initial_status(work.plan, work.store).values())


def test_verbs_know_a_run_of_several(
    both: tuple[Path, Any], flgbench: Flgbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, run = both
    only(monkeypatch, "main_table", "pareto")
    where, names = ("--out", str(out)), [each.folder.name for each in run.families.values()]
    assert package.results("latest", out).folder == run.folder
    code, printed, err = flgbench("status", *where)
    assert code == 0 and printed.startswith(run.folder.name), err
    assert "sample wanx euler" in printed and "sample hunyuan euler" in printed and " latency " in printed
    code, printed, err = flgbench("status", names[1], *where)
    assert code == 0 and "sample euler" in printed, "alone the family is understood"
    (run.report).unlink()
    code, printed, err = flgbench("report", *where)
    assert code == 0 and f"report: {run.report}" in printed and run.report.exists(), err
    assert f"A: {names[0]}" in printed and f"B: {names[1]}" in printed and "geometric mean" in printed
    code, printed, err = flgbench("report", names[1], *where)
    assert code == 0 and (out / "runs" / names[1] / "report" / "index.html").exists(), err
    image = tmp_path / "first.png"
    image.write_bytes(b"")
    asked = ("sample", "--image", str(image), "--prompt", "a red circle", "-o", str(tmp_path / "o.mp4"), *where)
    assert_refused(flgbench(*asked, "--student", "latest/euler"), "of several families", *names)
    assert_refused(flgbench(*asked, "--student", str(run.folder)), "of several families", *names)
    assert_refused(flgbench("compare", run.folder.name, names[0], "--runs", str(out)), "of several families", *names)


def test_a_plan_of_both(two_families: None, flgbench: Flgbench, tmp_path: Path) -> None:
    code, printed, err = flgbench("plan", *BOTH, *SMALL, "--out", str(tmp_path))
    assert code == 0, err
    assert "wanx tiny:\n" in printed and "hunyuan tiny:\n" in printed and printed.count("to run\n") == 2
    code, printed, _ = flgbench("plan", *BOTH, *SMALL, "--out", str(tmp_path), "--json")
    assert [run["settings"]["model"] for run in json.loads(printed)["runs"]] == ["wanx", "hunyuan"]
    code, printed, err = flgbench("ablate", "alpha", *BOTH, "--out", str(tmp_path), "--dry-run", "--json")
    assert code == 0, err
    assert [len(run["cells"]) for run in json.loads(printed)["runs"]] == [10, 10]


def test_on_a_cluster_steps_of_both_are_in_one_array(two_families: None, flgbench: Flgbench, tmp_path: Path) -> None:
    cluster = ("--executor", "slurm", "--profile", "devcluster")
    code, printed, err = flgbench("plan", *BOTH, *SMALL[:-2], *cluster, "--out", str(tmp_path), "--json")
    assert code == 0, err
    told = json.loads(printed)
    owner = {step["key"]: i for i, run in enumerate(told["runs"]) for step in run["steps"]}
    teachers = next(array for array in told["arrays"] if array["kind"] == "teacher")
    assert sorted(owner[key] for key in teachers["steps"]) == [0, 1]
    assert sum(array["kind"] == "latency" for array in told["arrays"]) and owner.keys() == {
        key for array in told["arrays"] for key in array["steps"]
    }


def test_jobs_of_both_and_of_one_are_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(scheduler, "queue", lambda: {"1": None, "2": None})
    monkeypatch.setattr(scheduler, "cancel", ended.extend)
    queue, folder = Queue(Store(tmp_path / "store")), tmp_path / "runs"
    told = [{"key": name, "inputs": {}} for name in ("one", "other")]
    plans = {"both": {"runs": ["a", "b"], "steps": told}, "a": {"steps": told[:1]}, "b": {"steps": told[1:]}}
    for name, record in plans.items():
        (folder / name).mkdir(parents=True)
        write_json(folder / name / "plan.json", record)
    queue.folder.mkdir()
    queue.add("one", "1", "a", tmp_path)
    queue.add("other", "2", "b", tmp_path)
    assert cancel_run(folder / "b") == 1 and ended == ["2"]
    assert cancel_run(folder / "both") == 2 and ended == ["2", "1", "2"]
