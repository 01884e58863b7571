"""The SLURM executor on a real one-machine cluster.

It installs Debian packages and starts daemons as root, so these tests run only with FLGBENCH_REQUIRE_SLURM=1.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Flgbench, assert_refused
from toy_plans import ON_DEVCLUSTER, SMALL, chains, toy_plan, write

from flgbench.errors import UsageError
from flgbench.plan import Plan
from flgbench.run_settings import RunSettings
from flgbench.runner import BLOCKED, DONE, FAILED
from flgbench.store import Store
from slurm import cluster, launcher, profiles, scheduler
from slurm.check import LOCAL, check_profile, check_shared, filesystem
from slurm.profiles import load_profile
from slurm.queue import Queue

DEVCLUSTER = Path(__file__).parent.parent / "slurm" / "devcluster" / "devcluster.py"
PROFILE = load_profile("devcluster")


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
    os.environ["FLGBENCH_CLUSTER"] = str(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (tests, tests / "toy_steps")))
    yield
    os.environ.clear()
    os.environ.update(before)
    subprocess.run([sys.executable, DEVCLUSTER, "stop", folder], check=True, capture_output=True)
    shutil.rmtree(outside)


def submit(
    made: Plan, out: Path, run: str = "run", max_jobs: int | None = None, profile: profiles.Profile = PROFILE
) -> tuple[Store, dict[str, str]]:
    store = Store(out / "store")
    (out / "runs" / run).mkdir(parents=True, exist_ok=True)
    return store, launcher.submit(made, store, out / "runs" / run, profile, max_jobs)


def read_curve(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


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


@pytest.mark.skipif(
    os.environ.get("FLGBENCH_TIME_LIMITS") != "1",
    reason="waits for real time limits, on a machine with nothing else to do: set FLGBENCH_TIME_LIMITS=1",
)
def test_a_time_limit_reached_again_and_again_changes_nothing(slurm: None, tmp_path: Path) -> None:
    """Two minutes, of which SLURM warns in the second; submitit counts each time below ten minutes as a timeout."""
    made, key = toy_plan(("plain", [], {"budget": 2400.0}))
    store, _ = submit(made, tmp_path, run="plain")
    short = PROFILE.model_copy(update={"time_minutes": 2, "signal_seconds": 60})
    limited, limited_key = toy_plan(("limited", [], {"budget": 2400.0}))
    _, ids = submit(limited, tmp_path, run="limited", profile=short)
    step = limited_key["limited"]

    def pushed_on() -> bool:
        job = scheduler.queue().get(ids[step])
        if job and job.reason == "BeginTime":  # SLURM would wait two minutes before it starts a requeued job again
            scheduler.call("scontrol", "update", f"JobId={ids[step]}", "StartTime=now")
        return store.is_done(step)

    wait_for(pushed_on, 400)
    cluster.follow(made, store, [])
    attempts = [e["event"] for e in store.events(step) if e["event"] in ("started", "requeued")]
    assert attempts.count("requeued") >= 1 and attempts.count("started") == attempts.count("requeued") + 1
    # What came after the last checkpoint is logged again by the attempt that follows: the same loss for the same iteration.
    limited_curve, plain_curve = (read_curve(store.path(k)) for k in (step, key["plain"]))
    assert {line["iteration"]: line for line in limited_curve} == {line["iteration"]: line for line in plain_curve}
    assert all(line in plain_curve for line in limited_curve)


def test_two_nodes_train_to_the_loss_of_one_process(slurm: None, tmp_path: Path) -> None:
    (one, key), (two, both) = (toy_plan((n, [], {"distributed": "dmd2"})) for n in ("alone", "together"))
    store, _ = submit(one, tmp_path, "one")
    _, ids = submit(two, tmp_path, "two", profile=PROFILE.model_copy(update={"nodes": 2}))
    nodes = scheduler.call("squeue", "-h", "-j", ids[both["together"]], "-o", "%D %C").split()
    assert nodes == ["2", "2"]
    assert {s.state for made in (one, two) for s in cluster.follow(made, store, []).values()} == {DONE}
    alone, together = (read_curve(store.path(k)) for k in (key["alone"], both["together"]))
    assert len(alone) == len(together) > 5
    for a, b in zip(alone, together, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5), "the tolerance: sums in another order"
        assert b["passes"] == a["passes"]


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
        "cpus = 3": "asks for 3 CPUs a node, and partition 'debug' has at most 2",
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


def test_a_folder_that_other_machines_do_not_see(slurm: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes are this machine; to a login machine of another name they are not."""
    wait_for(lambda: not scheduler.queue(), 30)  # earlier jobs last a moment longer than their steps
    check_shared(tmp_path, PROFILE)
    assert filesystem(tmp_path) in LOCAL
    monkeypatch.setattr("platform.node", lambda: "login")
    with pytest.raises(UsageError, match=r"of this machine \(login\), which the nodes .* may not see"):
        cluster.execute([RunSettings(baselines=("real",))], tmp_path / "out", PROFILE, None, True, "")
    assert not (tmp_path / "out").exists() and not scheduler.queue()
    check_shared(tmp_path, PROFILE.model_copy(update={"shared_folder": True}))


def test_a_small_run_by_its_verbs(slurm: None, flgbench: Flgbench, tmp_path: Path) -> None:
    """Submitted, cancelled, submitted again and followed to the report, whose artifacts are those of a local run."""
    code, printed, err = flgbench("run", *ON_DEVCLUSTER, "--out", "out", "--no-wait", "--json")
    assert code == 0, err
    submitted = json.loads(printed)
    assert submitted["jobs"] == 6
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


def test_two_families_in_one_queue(slurm: None, flgbench: Flgbench, tmp_path: Path) -> None:
    """Their steps share arrays, each job finds its own teacher, and one report shows both."""
    few = ("--methods", "none", "--baselines", "euler-4", "--conditions", "2", "--pairs", "3")
    verb = ("run", *few, "--model", "wanx,hunyuan", "--executor", "slurm", "--profile", "devcluster", "--out", "out")
    code, printed, err = flgbench(*verb, "--json")
    assert code == 0, err
    told = json.loads(printed)
    assert told["failed"] == {}
    page = Path(tmp_path, told["report"]).read_text()
    assert "wanx" in page and "hunyuan" in page and "geometric mean" in page
    sampled = [done.parent.name.rsplit("-v", 1)[0] for done in (tmp_path / "out").glob("store/sample*/done.json")]
    assert sampled == ["sample-euler-4"] * 2


def test_one_job_cancelled_by_hand_ends_its_chain_alone(slurm: None, tmp_path: Path) -> None:
    made, key = chains(2, seconds=60)
    store, ids = submit(made, tmp_path)
    wait_for(lambda: (job := scheduler.queue().get(ids[key["train0"]])) and job.state == "RUNNING")
    scheduler.cancel([ids[key["train0"]]])
    status = cluster.follow(made, store, [])
    assert {n: status[k].state for n, k in key.items()} == {
        n: FAILED if n == "train0" else BLOCKED if n in ("sample0", "quality0", "latency") else DONE for n in key
    }
    assert "CANCELLED" in status[key["train0"]].reason
    wait_for(lambda: not scheduler.queue(), 30)


def test_a_dead_node_gives_its_job_back(slurm: None, tmp_path: Path) -> None:
    """slurmd and the job's processes are killed with -9: SLURM requeues the job, which ends on another node or attempt."""
    made, key = toy_plan(("train", [], {"seconds": 6}))
    store, ids = submit(made, tmp_path)
    victim = key["train"]
    wait_for(lambda: any(e["event"] == "started" for e in store.events(victim)))
    node = next(e["node"] for e in store.events(victim) if e["event"] == "job")
    daemon = Path(os.environ["FLGBENCH_CLUSTER"]) / "run" / f"slurmd-{node}.pid"
    steps = subprocess.run(["pgrep", "-f", rf"slurmstepd: \[{ids[victim]}\."], capture_output=True, text=True).stdout.split()
    trees = [pid for step in steps for pid in (*descendants(int(step)), int(step))]
    assert trees, "the job has processes"
    for pid in (int(daemon.read_text()), *trees):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        wait_for(lambda: (job := scheduler.queue().get(ids[victim])) is None or job.state == "PENDING", 120)
        if ids[victim] in scheduler.queue():  # SLURM lets a requeued job wait for two minutes
            wait_for(lambda: scheduler.queue()[ids[victim]].state == "PENDING")
            scheduler.call("scontrol", "update", f"JobId={ids[victim]}", "StartTime=now")
        status = cluster.follow(made, store, [])
    finally:
        subprocess.run(["slurmd", "-N", node], check=True)
        wait_for(lambda: "down" not in scheduler.call("sinfo", "-h", "-N", "-o", "%t"), 60)
    assert status[victim].state == DONE, status[victim].reason
    assert [e["event"] for e in store.events(victim)].count("started") == 2


def descendants(pid: int) -> list[int]:
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [p for child in children for p in (*descendants(int(child)), int(child))]


def test_a_full_disk_fails_clearly_and_goes_on_after_room_is_made(slurm: None, tmp_path: Path) -> None:
    made, key = toy_plan(("big", [], {"megabytes": 8}), ("child", ["big"], {}))
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], check=True)
    try:
        store, _ = submit(made, small)
        status = cluster.follow(made, store, [])
        assert [status[key[n]].state for n in ("big", "child")] == [FAILED, BLOCKED]
        assert "No space left" in status[key["big"]].reason
        assert not store.is_done(key["big"])
        wait_for(lambda: not scheduler.queue(), 30)
        subprocess.run(["mount", "-o", "remount,size=64m", small], check=True)
        _, again = submit(made, small)
        assert set(again) == set(made.steps)
        assert {s.state for s in cluster.follow(made, store, []).values()} == {DONE}
        assert store.damage(key["big"]) is None
        wait_for(lambda: not scheduler.queue(), 30)
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_a_folder_that_cannot_be_written(slurm: None, flgbench: Flgbench, tmp_path: Path) -> None:
    """Read-only at submission: refused. Read-only while a job runs: that step fails, and goes on when it is writable."""
    made, key = toy_plan(("slow", [], {"seconds": 8}))
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        assert_refused(flgbench("run", *ON_DEVCLUSTER, "--out", str(place / "out")), "cannot write there")
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        store, _ = submit(made, place)
        wait_for(lambda: any(e["event"] == "started" for e in store.events(key["slow"])))
        # A remount is refused while files are open for writing, as the job's log is: the step's own folder it is then.
        folder = store.path(key["slow"])
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        status = cluster.follow(made, store, [])
        assert status[key["slow"]].state == FAILED and not store.is_done(key["slow"])
        subprocess.run(["umount", folder], check=True)
        wait_for(lambda: not scheduler.queue(), 30)
        submit(made, place)
        assert {s.state for s in cluster.follow(made, store, []).values()} == {DONE}
        wait_for(lambda: not scheduler.queue(), 30)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_the_submitting_process_may_die(slurm: None, flgbench: Flgbench, tmp_path: Path) -> None:
    """kill -9 while it follows its jobs: they end, and `report` makes the page later."""
    code = "import sys; from flgbench.cli import main; sys.argv[1:] = sys.argv[2:]; main()"
    arguments = [sys.executable, "-c", code, "--", "run", *ON_DEVCLUSTER, "--out", str(tmp_path / "out")]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: len(scheduler.queue()) >= 3, 120)
        process.kill()
    wait_for(lambda: not scheduler.queue(), 240)
    ended, _, err = flgbench("report", "--out", str(tmp_path / "out"))
    assert ended == 0, err
    assert len(list((tmp_path / "out").glob("runs/*/report/index.html"))) == 1
