"""The SLURM executor: profiles, grouping and states in pure functions; the rest on a real one-machine cluster.

The cluster installs Debian packages and starts daemons as root, so its tests run only with FLGBENCH_REQUIRE_SLURM=1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Flgbench, assert_refused

from flgbench.errors import UsageError
from flgbench.plan import Plan, RunSettings, Step, plan
from flgbench.registry import registry
from flgbench.runner import BLOCKED, CACHED, DONE, FAILED, RUNNING, WAITING, Status
from flgbench.store import Store
from slurm import cluster, job, launcher, profiles, scheduler, state
from slurm.check import check_profile
from slurm.grouping import Array, group
from slurm.profiles import load_profile
from slurm.queue import Queue, Record

ROOT = Path(__file__).parent.parent
DEVCLUSTER = ROOT / "slurm" / "devcluster" / "devcluster.py"
PROFILE = load_profile("devcluster")


def toy_plan(*steps: tuple[str, list[str], dict[str, Any]]) -> tuple[Plan, dict[str, str]]:
    """A plan of (name, names of parents, settings), and the keys by name."""
    made: dict[str, Step] = {}
    key: dict[str, str] = {}
    for name, parents, settings in steps:
        step = Step("toy", name, settings, {p: key[p] for p in parents})
        made[step.key], key[name] = step, step.key
    return Plan(made, []), key


def chains(count: int, **first: Any) -> tuple[Plan, dict[str, str]]:
    """root -> train i -> sample i -> quality i, and all trains -> latency; the settings `first` are those of train 0."""
    steps: list[tuple[str, list[str], dict[str, Any]]] = [("root", [], {})]
    for i in range(count):
        steps += [(f"train{i}", ["root"], {} if i else first), (f"sample{i}", ["root", f"train{i}"], {})]
        steps += [(f"quality{i}", ["root", f"sample{i}"], {})]
    return toy_plan(*steps, ("latency", [f"train{i}" for i in range(count)], {}))


# Profiles


def write(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")


def test_shipped_profiles_are_valid() -> None:
    assert profiles.names() == ["a100", "devcluster", "h100"]
    for name in profiles.names():
        assert {load_profile(name).resources(kind).exclusive for kind in ("latency",)} == {True}


def test_a_kind_overrides_the_defaults(tmp_path: Path) -> None:
    made = load_profile(write(tmp_path, 'cpus = 4\nqos = "low"\noptions = {nice = 5}\n[kinds.train]\ngpus = 2\ncpus = 8\n'))
    train, data = made.resources("train"), made.resources("data")
    assert (made.name, train.cpus, train.gpus, data.cpus, data.gpus) == ("mine", 8, 2, 4, 0)
    assert {"--qos=low", "--nice=5", "--gpus-per-node=2", "--mem=4096M", "--time=60"} <= set(train.flags())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cpus = 4\ngpu = 1\n", [":2: ", "no setting 'gpu'", "did you mean 'gpus'"]),
        ("cpus = 4\n\ntime_minutes = 'long'\n", [":3: ", "time_minutes", "got 'long'"]),
        ("[kinds.train]\ncpus = 1\n[kinds.sample]\ncpu = 1\n", [":4: ", "kinds.sample has no setting 'cpu'"]),
        ("[kinds.train]\n\ncpus = 0\n", [":3: ", "kinds.train.cpus", "got 0"]),
        ("[kinds.trian]\ncpus = 1\n", [":1: ", "no step kind 'trian'", "did you mean 'train'"]),
        ("[hardware]\ngpuu = 'x'\n", [":2: ", "hardware has no setting 'gpuu'"]),
        ("cpus = 4\nmemory_gb = \n", ["line 2"]),
        ("kinds = 3\n", [":1: ", "kinds"]),
        ("setup = 'module load cuda'\n", [":1: ", "setup"]),
        ("nodes = 2\n", [":1: ", "nodes", "got 2"]),
    ],
)
def test_wrong_profiles_name_file_and_line(text: str, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        load_profile(write(tmp_path, text))
    message = str(error.value)
    assert "\n" not in message and "mine.toml" in message
    for word in words:
        assert word in message, message


def test_unknown_profiles() -> None:
    with pytest.raises(UsageError, match=r"no profile 'h10': did you mean 'h100'\?.*a path ending in \.toml"):
        load_profile("h10")
    with pytest.raises(UsageError, match="cannot read"):
        load_profile("/nowhere/mine.toml")


# Grouping


def names(made: Plan, arrays: list[Array]) -> list[list[str]]:
    return [[made.steps[k].name for k in a.keys] for a in arrays]


def test_chains_go_on_index_to_index() -> None:
    made, key = chains(3)
    arrays = group(made, made.steps, PROFILE)
    by_first = {made.steps[a.keys[0]].name: a for a in arrays}
    assert sorted(names(made, arrays)) == sorted(
        [["root"], *([f"{n}{i}" for i in range(3)] for n in ("train", "sample", "quality")), ["latency"]]
    )
    assert by_first["train0"].after == (key["root"],) and by_first["train0"].corresponding is None
    assert arrays[by_first["sample0"].corresponding or 0] is by_first["train0"]
    assert arrays[by_first["quality0"].corresponding or 0] is by_first["sample0"]
    assert set(by_first["latency"].after) == {key[f"train{i}"] for i in range(3)}


def test_what_is_done_is_not_submitted_and_what_is_queued_is_waited_for() -> None:
    made, key = chains(2)
    queued = {key["train0"]}
    pending = [k for k in made.steps if k not in queued | {key["root"], key["train1"]}]
    arrays = group(made, pending, PROFILE, queued)
    after = {made.steps[k].name: set(a.after) for a in arrays for k in a.keys}
    assert after["sample0"] == queued and after["sample1"] == set() and after["latency"] == queued
    assert not any(key["train0"] in a.keys for a in arrays)


def test_no_task_waits_for_a_step_that_it_does_not_need() -> None:
    """For the default plan, with what SLURM lets an array say: `after` for all its tasks, or the same index."""
    everything = {kind: tuple(registry(kind).names()) for kind in ("methods", "baselines")}
    made = plan(RunSettings(**everything), {"cores": 2})
    arrays = group(made, made.steps, PROFILE)
    assert sorted(k for a in arrays for k in a.keys) == sorted(made.steps)
    seen: set[str] = set()
    for array in arrays:
        for index, key in enumerate(array.keys):
            waits = set(array.after)
            if array.corresponding is not None:
                assert len(arrays[array.corresponding].keys) == len(array.keys) > 1
                waits.add(arrays[array.corresponding].keys[index])
            assert waits == set(made.steps[key].inputs.values()) <= seen
        seen |= set(array.keys)
    assert len(arrays) < len(made.steps) / 2


def test_thousands_of_cells_are_grouped_quickly() -> None:
    made, _ = chains(2500)
    began = time.monotonic()
    arrays = group(made, made.steps, PROFILE)
    assert time.monotonic() - began < 2 and max(len(a.keys) for a in arrays) <= 1000
    assert sum(len(a.keys) for a in arrays) == len(made.steps) == 7502


# States


def test_states_of_steps(tmp_path: Path) -> None:
    made, key = chains(4)
    store = Store(tmp_path / "store")
    store.start(key["root"])
    store.finish(key["root"], {})
    for name, job_id in (("train1", "7_1"), ("train2", "7_2")):
        store.start(key[name])
        store.event(key[name], "job", id=job_id)
        store.event(key[name], "failed", reason="NaN: loss")
    told = {"train0": "7_0", "train1": "7_1", "train2": "8", "train3": "7_3", "sample0": "9_0", "sample1": "9_1"}
    records = {key[name]: Record(job_id, "x", "log", 0) for name, job_id in told.items()}
    live = {"7_0": scheduler.Job("RUNNING"), "9_0": scheduler.Job("PENDING", "Dependency"), "9_1": scheduler.Job("PENDING")}
    parents = {k: list(s.inputs.values()) for k, s in made.steps.items()}

    def history(ids: Any) -> dict[str, scheduler.Job]:
        assert set(ids) == {"7_1", "8", "7_3"}
        return {"7_1": scheduler.Job("FAILED", "exit code 1:0"), "8": scheduler.Job("CANCELLED", "CANCELLED by 0", "1:00")}

    found = {made.steps[k].name: s for k, s in state.statuses(parents, store, records, live, [key["root"]], history).items()}
    assert {n: found[n].state for n in ("root", *told, "quality1", "latency", "sample2")} == {
        "root": CACHED, "train0": RUNNING, "train1": FAILED, "train2": FAILED, "train3": FAILED, "sample0": WAITING,
        "sample1": BLOCKED, "quality1": BLOCKED, "latency": BLOCKED, "sample2": BLOCKED,
    }  # fmt: skip
    assert found["train1"].reason == "NaN: loss", "of this job"
    assert "CANCELLED by 0" in found["train2"].reason and "NaN" not in found["train2"].reason, "an older job's failure"
    assert "left SLURM's queue" in found["train3"].reason
    assert key["train1"] in found["sample1"].reason


def test_a_failure_counts_when_seen_twice() -> None:
    gone, ran = Status(FAILED, "left SLURM's queue"), Status(RUNNING)
    assert cluster._confirmed(ran, gone) is ran and cluster._confirmed(gone, gone) is gone
    assert cluster._confirmed(None, gone).state == WAITING and cluster._confirmed(ran, Status(DONE)).state == DONE


@pytest.mark.parametrize(("text", "expected"), [("infinite", None), ("30:00", 30), ("1:30:00", 90), ("2-01:00:00", 2940)])
def test_time_limits(text: str, expected: int | None) -> None:
    assert scheduler.minutes(text) == expected


# The job


def test_a_job_refuses_other_code_and_missing_parents(tmp_path: Path) -> None:
    made, key = chains(1)
    store = Store(tmp_path / "store")
    steps = tmp_path / "steps.json"
    job.save_steps(steps, made.steps)
    assert job.load_step(steps, key["train0"]) == made.steps[key["train0"]]
    for code, word in (("0" * 12, "code in"), (job.code_hash(), f"needs {key['root']}")):
        with pytest.raises(job.Refused, match=word):
            job.StepJob(store.root, steps, key["train0"], code)()
        assert word in store.events(key["train0"])[-1]["reason"] and not store.is_done(key["train0"])


def test_a_job_refuses_to_time_other_hardware(tmp_path: Path) -> None:
    step = Step("latency", "x", {"hardware": {"gpu": "H100", "cores": 1}}, exclusive=True)
    store = Store(tmp_path / "store")
    job.save_steps(tmp_path / "steps.json", {step.key: step})
    with pytest.raises(job.Refused, match="gpu is 'none', not 'H100'"):
        job.StepJob(store.root, tmp_path / "steps.json", step.key, job.code_hash())()


# The command line


SMALL = ("--methods", "none", "--baselines", "frozen_image,real", "--conditions", "2", "--pairs", "3")
ON_DEVCLUSTER = (*SMALL, "--executor", "slurm", "--profile", "devcluster")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--executor", "slurm"], ["needs --profile", "devcluster"]),
        (["--executor", "slurm", "--profile", "devclustr"], ["did you mean 'devcluster'"]),
        (["--profile", "devcluster"], ["--profile needs --executor slurm"]),
        (["--max-jobs", "2"], ["--max-jobs needs --executor slurm"]),
        (["--no-wait"], ["--no-wait needs --executor slurm"]),
        (["--executor", "slurm", "--profile", "devcluster", "--slots", "2"], ["--slots"]),
        (["--executor", "slurm", "--profile", "devcluster", "--max-jobs", "0"], ["--max-jobs"]),
    ],
)
def test_wrong_options(arguments: list[str], words: list[str], flgbench: Flgbench, tmp_path: Path) -> None:
    assert_refused(flgbench("run", *SMALL, "--out", "out", *arguments), *words)
    assert not (tmp_path / "out").exists()


def test_no_slurm_on_this_machine(flgbench: Flgbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_refused(flgbench("run", *ON_DEVCLUSTER, "--out", "out"), "no SLURM on this machine")
    assert_refused(flgbench("profile", "check", "devcluster"), "no SLURM on this machine")
    assert not (tmp_path / "out").exists()
    code, printed, _ = flgbench("run", *ON_DEVCLUSTER, "--max-jobs", "1", "--out", "out", "--dry-run")
    assert code == 0 and "array 0: 1 teacher, sbatch --partition=debug" in printed and "%1" in printed


# On a cluster


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    """A cluster of this project's own script, for these tests alone."""
    if os.environ.get("FLGBENCH_REQUIRE_SLURM") != "1":
        pytest.skip("installs SLURM and starts its daemons: set FLGBENCH_REQUIRE_SLURM=1")
    # Not pytest's folder: munge wants a way to its socket that everybody may go.
    outside = Path(tempfile.mkdtemp(prefix="flgbench-slurm-"))
    outside.chmod(0o755)
    folder = outside / "cluster"
    done = subprocess.run([sys.executable, DEVCLUSTER, "start", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"no SLURM here: {(done.stderr or done.stdout).strip()}")
    before = dict(os.environ)
    tests = Path(__file__).parent
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (tests, tests / "toy_steps")))
    yield
    os.environ.clear()
    os.environ.update(before)
    subprocess.run([sys.executable, DEVCLUSTER, "stop", folder], check=True, capture_output=True)
    shutil.rmtree(outside)


def submit(made: Plan, out: Path, run: str = "run", max_jobs: int | None = None) -> tuple[Store, dict[str, str]]:
    store = Store(out / "store")
    (out / "runs" / run).mkdir(parents=True, exist_ok=True)
    return store, launcher.submit(made, store, out / "runs" / run, PROFILE, max_jobs)


def wait_for(true: Callable[[], Any], seconds: float = 90) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "took too long"
        time.sleep(0.3)
    return found


def test_a_failed_parent_blocks_its_chain_alone(slurm: None, tmp_path: Path) -> None:
    made, key = chains(3, fail=True)
    store, ids = submit(made, tmp_path)
    assert len(ids) == len(made.steps)
    status = cluster.follow(made, store, [])
    assert {n: status[k].state for n, k in key.items()} == {
        n: FAILED if n == "train0" else BLOCKED if n in ("sample0", "quality0", "latency") else DONE for n in key
    }
    assert status[key["train0"]].reason == "ValueError: by request"
    assert (store.path(key["quality1"]) / "out.txt").read_text() == "quality1rootsample1roottrain1root"
    assert store.facts(key["quality1"])["threads"] == PROFILE.cpus
    wait_for(lambda: not scheduler.queue(), 30)  # a job lasts a moment longer than its step; nothing pends for ever
    # The same again: only what is missing.
    _, again = submit(made, tmp_path)
    assert sorted(again) == sorted(key[n] for n in ("train0", "sample0", "quality0", "latency"))
    cluster.follow(made, store, [])


def test_a_requeued_training_goes_on_with_the_same_losses(slurm: None, tmp_path: Path) -> None:
    made, key = toy_plan(*((n, [], {"budget": 300.0}) for n in ("plain", "requeued")), ("child", ["requeued"], {}))
    store, ids = submit(made, tmp_path)
    victim, curve = key["requeued"], store.path(key["requeued"]) / "curve.jsonl"
    wait_for(lambda: curve.exists() and len(curve.read_text().splitlines()) > 3)
    scheduler.call("scontrol", "requeue", ids[victim])
    waiting = ("PENDING", "BeginTime")
    wait_for(lambda: (j := scheduler.queue().get(ids[victim])) and (j.state, j.reason) == waiting)
    before = len(curve.read_text().splitlines())
    scheduler.call("scontrol", "update", f"JobId={ids[victim]}", "StartTime=now")
    status = cluster.follow(made, store, [])
    assert {s.state for s in status.values()} == {DONE}
    lines = [json.loads(line) for line in curve.read_text().splitlines()]
    plain = [json.loads(line) for line in (store.path(key["plain"]) / "curve.jsonl").read_text().splitlines()]
    assert [e["event"] for e in store.events(victim)].count("started") == 2
    assert before < len(plain) and lines[before]["iteration"] > 1, "it was in the middle, and did not begin again"
    assert {x["iteration"]: x["loss"] for x in lines} == {x["iteration"]: x["loss"] for x in plain}


def test_two_runs_submit_a_common_step_once(slurm: None, tmp_path: Path) -> None:
    (one, key), (two, _) = chains(1, seconds=3), chains(2, seconds=3)
    store, first = submit(one, tmp_path, "one")
    _, second = submit(two, tmp_path, "two", max_jobs=1)
    assert set(first) & set(second) == set() and key["train0"] in first
    assert {s.state for made in (two, one) for s in cluster.follow(made, store, []).values()} == {DONE}
    assert [e["event"] for e in store.events(key["train0"])].count("started") == 1
    assert Queue(store).records([key["train0"]])[key["train0"]].run == "one"


def test_requests_that_cannot_be_met(slurm: None, flgbench: Flgbench, tmp_path: Path) -> None:
    assert len(check_profile(PROFILE, profiles.KINDS)) == len(profiles.KINDS)
    wrong = {
        "partition = 'gpu'": "no partition 'gpu'",
        "gpus = 3": "asks for 3 GPUs a node, and partition 'debug' has at most 2",
        "[kinds.sample]\nmemory_gb = 99": "sample: asks for 99 GB",
        "constraint = 'h100'": "Invalid feature",
    }
    for text, word in wrong.items():
        profile = write(tmp_path, text)
        assert_refused(flgbench("profile", "check", profile), word)
        run = ("run", *SMALL, "--executor", "slurm", "--profile", profile, "--out", "out")
        assert_refused(flgbench(*run), word)
    assert not (tmp_path / "out").exists()
    wait_for(lambda: not scheduler.queue(), 30)


def test_a_small_run_by_its_verbs(slurm: None, flgbench: Flgbench, tmp_path: Path) -> None:
    """Submitted, cancelled, submitted again and followed to the report, whose artifacts are those of a local run."""
    code, printed, err = flgbench("run", *ON_DEVCLUSTER, "--out", "out", "--no-wait", "--json")
    assert code == 0, err
    submitted = json.loads(printed)
    assert submitted["jobs"] == 7
    code, printed, _ = flgbench("status", "--out", "out", "--json")
    steps = json.loads(printed)["steps"]
    assert {s["state"] for s in steps} <= {"waiting", "running", "done"} and any(s.get("slurm") for s in steps)
    code, printed, _ = flgbench("cancel", "--out", "out")
    assert code == 0 and "jobs cancelled" in printed
    wait_for(lambda: not scheduler.queue())
    code, _, err = flgbench("run", *ON_DEVCLUSTER, "--out", "out")
    assert code == 0, err
    assert (tmp_path / submitted["run"] / "report" / "index.html").exists()
    code, _, err = flgbench("report", "--out", "out")
    assert code == 0, err
    assert flgbench("run", *SMALL, "--out", "local", "--executor", "inline")[0] == 0
    for done in (tmp_path / "local" / "store").glob("*/done.json"):
        if not done.parent.name.startswith("latency"):
            other = tmp_path / "out" / "store" / done.parent.name / "done.json"
            assert json.loads(other.read_text())["files"] == json.loads(done.read_text())["files"], done.parent.name
