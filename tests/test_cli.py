"""The command line: every wrong input is one clear line and exit code 2 before any work; listing is light."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Flgbench, assert_refused
from report_runs import only

from flgbench.models import families
from flgbench.store import Store

WRONG = {
    "unknown method": (["--methods", "fastlightgn"], ["no method 'fastlightgn'", "did you mean 'fastlightgen'"]),
    "unknown baseline": (["--baselines", "eulr"], ["did you mean 'euler'"]),
    "unknown family": (["--model", "wan"], ["no family 'wan'", "did you mean 'wanx'"]),
    "unknown scale": (["--scale", "15b"], ["--scale 15b", "tiny", "14b"]),
    "no weights": (["--scale", "14b", "--checkpoint", "nowhere/at-all"], ["--checkpoint nowhere/at-all", "hf download"]),
    "tiny elsewhere": (["--checkpoint", "."], ["--scale 14b", "ship with the package"]),
    "unknown setting": (["--set", "dmd2.lrr=1"], ["dmd2 has no setting 'lrr'", "did you mean 'lr'"]),
    "unknown inner setting": (["--set", "fastlightgen.match.beta3=1"], ["fastlightgen.match has no setting 'beta3'"]),
    "setting of no method": (["--set", "dmd.lr=1"], ["no method 'dmd'", "did you mean 'dmd2'"]),
    "setting without value": (["--set", "dmd2.lr"], ["METHOD.SETTING=VALUE"]),
    "setting of the wrong type": (["--set", "dmd2.lr=quick"], ["dmd2.lr", "got 'quick'"]),
    "keep 0": (["--set", "fastlightgen.keep=0"], ["fastlightgen.keep", "greater than 0", "got 0"]),
    "keep 1.2": (["--set", "fastlightgen.keep=1.2"], ["fastlightgen.keep", "less than or equal to 1", "got 1.2"]),
    "steps 0": (["--set", "dmd2.steps=0"], ["dmd2.steps", "got 0"]),
    "times 0": (["--set", "fastlightgen.importance.times=0"], ["fastlightgen.importance.times", "got 0"]),
    "negative beta": (["--set", "fastlightgen.match.beta2=-0.1"], ["fastlightgen.match.beta2", "got -0.1"]),
    "alpha 2": (["--set", "fastlightgen.recover.alpha=2"], ["fastlightgen.recover.alpha", "got 2"]),
    "budget 0": (["--budget", "0"], ["run.budget", "got 0"]),
    "budget below the ranking": (["--budget", "100"], ["fastlightgen", "raise --budget"]),
    "conditions 0": (["--conditions", "0"], ["run.conditions", "got 0"]),
    "one pair": (["--pairs", "1"], ["run.pairs", "got 1"]),
    "slots 0": (["--slots", "0"], ["--slots", "greater than or equal to 1"]),
    "not a number": (["--budget", "lots"], ["--budget", "valid number"]),
    "unknown flag": (["--metods", "all"], ["--metods"]),
    "conflicting flags": (["--executor", "inline", "--slots", "2"], ["--executor inline", "--slots"]),
    "conflicting settings": (
        ["--set", "fastlightgen.keep=0.5", "--set", "fastlightgen.importance.keep=0.7"],
        ["keep 0.5 and importance.keep 0.7 differ"],
    ),
    "a setting twice": (["--set", "dmd2.lr=1", "--set", "dmd2.lr=2"], ["dmd2.lr is given twice"]),
    "a name twice": (["--methods", "dmd2,dmd2"], ["given twice"]),
    "setting of a method left out": (
        ["--methods", "dmd2", "--set", "fastlightgen.keep=0.5"],
        ["'fastlightgen' is not among the methods"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_of_run(case: str, flgbench: Flgbench, tmp_path: Path) -> None:
    arguments, words = WRONG[case]
    assert_refused(flgbench("run", "--out", str(tmp_path / "out"), *arguments), *words)
    assert not (tmp_path / "out").exists(), "before any work"


def test_unwritable_folder(flgbench: Flgbench, tmp_path: Path) -> None:
    """Below a regular file nobody can write, not even root."""
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "below", tmp_path / "file"):
        assert_refused(flgbench("run", "--out", str(out)), f"--out {out}", "cannot write there")


def test_other_verbs_refuse_too(flgbench: Flgbench, tmp_path: Path) -> None:
    empty = ["--out", str(tmp_path / "none")]
    assert_refused(flgbench("status", *empty), "no runs in")
    assert_refused(flgbench("report", "no-such-run", *empty), "no run 'no-such-run'")
    assert_refused(flgbench("list", "metods"), "metods")
    assert_refused(flgbench("pretrain", "--model", "wan"), "did you mean 'wanx'")
    assert_refused(flgbench("rnu"), "rnu")


def test_damaged_artifact_is_named_and_removed(flgbench: Flgbench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, printed, _ = flgbench("plan", "--methods", "none", "--baselines", "real", "--out", str(out), "--json")
    key = next(s["key"] for s in json.loads(printed)["steps"] if s["kind"] == "teacher")
    store = Store(out / "store")
    (store.start(key) / "teacher.json").write_text("{}")
    store.finish(key, {})
    (store.path(key) / "teacher.json").write_text("{ }")
    arguments = ["--methods", "none", "--baselines", "real", "--out", str(out)]
    assert_refused(flgbench("run", *arguments), key, "damaged", "teacher.json has changed", "computes it again")
    code, printed, _ = flgbench("plan", *arguments)
    assert code == 0 and "0 cached" in printed


def test_an_artifact_that_is_gone_is_all_that_is_computed_again(
    flgbench: Flgbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "main_table")
    line = ["run", "--methods", "none", "--baselines", "real", "--conditions", "2", "--executor", "inline"]
    assert flgbench(*line)[0] == 0
    (record,) = (tmp_path / "flgbench-out" / "runs").glob("*/run.json")
    first = json.loads(record.read_text())
    (gone,) = (tmp_path / "flgbench-out" / "store").glob("quality-real-*")
    shutil.rmtree(gone)
    code, _, told = flgbench(*line)
    assert code == 0, told
    done = [step for step in told.splitlines() if step.startswith("done")]
    assert len(done) == 1 and "quality real" in done[0]
    again = json.loads(record.read_text())
    assert again["seconds"] > first["seconds"] and again["started"] == first["started"], "of both calls"


def test_weights_that_are_not_the_recorded_ones(flgbench: Flgbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(families.WEIGHTS, tmp_path / "weights")
    monkeypatch.setattr(families, "WEIGHTS", tmp_path / "weights")
    changed = tmp_path / "weights" / "wanx-tiny" / "transformer" / "diffusion_pytorch_model.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\1")
    assert_refused(flgbench("run", "--out", str(tmp_path / "out")), str(changed), "sha256 is", "expected")
    assert not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "weights")
    assert_refused(flgbench("run", "--out", str(tmp_path / "out")), "no weights in")


def test_plan_prints_every_step(flgbench: Flgbench, tmp_path: Path) -> None:
    arguments = ["--methods", "fastlightgen", "--set", "fastlightgen.match.beta2=0", "--out", str(tmp_path)]
    code, printed, err = flgbench("plan", *arguments)
    assert code == 0 and err == ""
    assumed, *lines, counts, total = printed.splitlines()
    for step in ("importance", "recover", "match", "interleaved"):
        assert any(line.startswith("to run") and f" {step} " in line for line in lines)
    assert counts == f"{len(lines)} steps: 0 cached, {len(lines)} to run"
    assert assumed.startswith("costs: ") and total.startswith("still to run: ")
    code, again, _ = flgbench("run", "--dry-run", *arguments)
    assert code == 0 and again == printed
    code, as_json, _ = flgbench("plan", "--json", *arguments)
    record = json.loads(as_json)
    assert set(record["status"].values()) == {"waiting"} and len(record["steps"]) == len(lines)
    assert record["settings"]["method_settings"] == {"fastlightgen": {"match": {"beta2": 0}}}


def test_status_reads_files_only(flgbench: Flgbench, tmp_path: Path) -> None:
    """A run that this process never saw: done, running, failed and waiting steps, told apart by their files."""
    folder = tmp_path / "out" / "runs" / "some-run"
    folder.mkdir(parents=True)
    parents: dict[str, dict[str, str]] = {"a": {}, "b": {}, "c": {}, "d": {}, "e": {"student": "c"}, "f": {"sample": "e"}}
    steps = [{"key": key, "kind": "train", "name": key, "inputs": needs} for key, needs in parents.items()]
    (folder / "plan.json").write_text(json.dumps({"steps": steps}))
    store = Store(tmp_path / "out" / "store")
    for key in "abc":
        store.start(key)
        store.event(key, "started")
    store.finish("a", {})
    store.event("b", "progress", fraction=0.5, loss=0.25)
    store.event("c", "failed", reason="NaN: by request")
    code, printed, _ = flgbench("status", "--out", str(tmp_path / "out"), "--json")
    found = {s["step"].split()[1]: s for s in json.loads(printed)["steps"]}
    assert code == 0 and {k: s["state"] for k, s in found.items()} == {
        "a": "done", "b": "running", "c": "failed", "d": "waiting", "e": "blocked", "f": "blocked"
    }  # fmt: skip
    assert found["b"]["fraction"] == 0.5 and found["c"]["reason"] == "NaN: by request"


def test_watching_ends_with_the_run(flgbench: Flgbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every look in between finishes a step; two looks that see the same print once."""
    folder = tmp_path / "out" / "runs" / "some-run"
    folder.mkdir(parents=True)
    steps = [{"key": key, "kind": "train", "name": key, "inputs": {}} for key in "ab"]
    (folder / "plan.json").write_text(json.dumps({"steps": steps}))
    store = Store(tmp_path / "out" / "store")
    coming = iter(["a", "a", "b"])

    def finish(seconds: float) -> None:
        key = next(coming)
        store.start(key)
        if not store.is_done(key):
            store.finish(key, {})
            store.event(key, "done")

    monkeypatch.setattr("time.sleep", finish)
    code, printed, _ = flgbench("status", "--watch", "--json", "--out", str(tmp_path / "out"))
    looks = [[s["state"] for s in json.loads(line)["steps"]] for line in printed.splitlines()]
    assert code == 0 and looks == [["waiting", "waiting"], ["done", "waiting"], ["done", "done"]]


def test_a_failed_step_is_exit_code_1(flgbench: Flgbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The verb says so with typer.Exit(1), which must reach the shell."""
    import flgbench.runs as work
    from flgbench.runner import FAILED, Status

    monkeypatch.setattr(work, "execute", lambda *a, **k: (tmp_path, {"train-x": Status(FAILED, "NaN: loss")}))
    code, printed, _ = flgbench("run", "--out", str(tmp_path / "out"))
    assert code == 1 and "failed: train-x: NaN: loss" in printed


def test_listing_and_help_import_no_torch() -> None:
    """In a process of its own, because this one has torch: each verb that must answer at once, then the check."""
    code = """
import sys
from flgbench import cli
for line in ("--help", "run --help", "list", "list baselines", "list families", "list reports", "list metrics --json"):
    sys.argv = ["flgbench", *line.split()]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, line
for heavy in ("torch", "diffusers", "transformers", "pandas", "matplotlib"):
    assert heavy not in sys.modules, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0, done.stderr
    for text in ("Start with: flgbench run --methods all --model wanx", "fastlightgen", "euler", "wanx", "presence"):
        assert text in done.stdout


def test_module_is_the_command() -> None:
    command = [sys.executable, "-m", "flgbench", "run", "--methods", "dmd3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert_refused((done.returncode, done.stdout, done.stderr), "did you mean 'dmd2'")
