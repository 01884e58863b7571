"""The SLURM executor without a cluster: profiles, grouping, states, and what is refused before anything is submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Flgbench, assert_refused
from toy_plans import ON_DEVCLUSTER, SMALL, chains, write

from flgbench.cells import Step
from flgbench.errors import UsageError
from flgbench.plan import Plan, plan
from flgbench.registry import registry
from flgbench.run_settings import RunSettings
from flgbench.runner import BLOCKED, CACHED, DONE, FAILED, RUNNING, WAITING, Status
from flgbench.store import Store
from slurm import cluster, job, profiles, scheduler, state
from slurm.check import filesystem
from slurm.grouping import Array, group
from slurm.profiles import load_profile
from slurm.queue import Record

PROFILE = load_profile("devcluster")


# Profiles


def test_shipped_profiles_are_valid() -> None:
    assert profiles.names() == ["a100", "devcluster", "h100"]
    for name in profiles.names():
        assert {load_profile(name).resources(kind).exclusive for kind in ("latency",)} == {True}


def test_a_kind_overrides_the_defaults(tmp_path: Path) -> None:
    made = load_profile(write(tmp_path, 'cpus = 4\nqos = "low"\noptions = {nice = 5}\n[kinds.train]\ngpus = 2\ncpus = 8\n'))
    train, data = made.resources("train"), made.resources("data")
    assert (made.name, train.cpus, train.gpus, data.cpus, data.gpus) == ("mine", 8, 2, 4, 0)
    assert {"--qos=low", "--nice=5", "--gpus-per-node=2", "--mem=4096M", "--time=60"} <= set(train.flags())


def test_a_training_has_a_task_for_each_gpu(tmp_path: Path) -> None:
    made = load_profile(write(tmp_path, "[kinds.train]\nnodes = 2\ngpus = 4\n"))
    assert {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"} <= set(made.resources("train").flags())
    assert {"--nodes=1", "--ntasks-per-node=1"} <= set(made.resources("sample").flags())


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
        ("cpus = 1\nnodes = 2\n", [":2: ", "nodes", "got 2", "[kinds.train]"]),
        ("[kinds.sample]\ngpus = 2\n", [":2: ", "kinds.sample.gpus", "got 2"]),
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
    everything = {"methods": tuple(registry("methods").names()), "baselines": tuple(registry("baselines").groups()["all"])}
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


def test_thousands_of_cells_are_grouped() -> None:
    made, _ = chains(2500)
    arrays = group(made, made.steps, PROFILE)
    assert max(len(a.keys) for a in arrays) <= 1000
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


def test_file_systems(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("overlay / overlay rw 0 0\nserver:/home /home nfs4 rw 0 0\n/dev/sdb /home/local\\040disk xfs rw 0 0\n")
    known = {"/home/me/out": "nfs4", "/home/local disk/out": "xfs", "/scratch": "overlay", "/": "overlay"}
    for folder, kind in known.items():
        assert filesystem(Path(folder), mounts) == kind
    assert filesystem(tmp_path, tmp_path / "none") == "" != filesystem(tmp_path)


def test_no_slurm_on_this_machine(flgbench: Flgbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_refused(flgbench("run", *ON_DEVCLUSTER, "--out", "out"), "no SLURM on this machine")
    assert_refused(flgbench("profile", "check", "devcluster"), "no SLURM on this machine")
    assert not (tmp_path / "out").exists()
    code, printed, _ = flgbench("run", *ON_DEVCLUSTER, "--max-jobs", "1", "--out", "out", "--dry-run")
    assert code == 0 and "array 0: 1 teacher, sbatch --partition=debug" in printed and "%1" in printed
