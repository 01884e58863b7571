"""How long a step waits for us: from `submit` to the first step's start, beyond what an empty job waits for SLURM.

Run with `FLGBENCH_REQUIRE_SLURM=1 pytest tests/benchmarks/test_submission.py --benchmark-enable -s` (root; wanted: 2 s).
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
from test_slurm_cluster import slurm, submit, wait_for  # noqa: F401
from toy_plans import toy_plan

ROUNDS = 5


@pytest.mark.benchmark
def test_from_submission_to_the_first_step(slurm: None, tmp_path: Path, benchmark) -> None:  # noqa: F811
    """Median seconds of both, one after the other, with nothing else in the queue."""
    if not benchmark.enabled:
        pytest.skip("a measurement: --benchmark-enable")
    ours, empty = [], []
    for i in range(ROUNDS):
        file = tmp_path / f"started{i}"
        began = time.time()
        subprocess.run(["sbatch", "--output=/dev/null", f"--wrap=date +%s.%N > {file}"], check=True, capture_output=True)
        wait_for(lambda file=file: file.exists() and file.read_text().strip())
        empty.append(float(file.read_text()) - began)

    def ours_once() -> None:
        made, key = toy_plan(("first", [], {"round": len(ours)}))
        began = time.time()
        store, _ = submit(made, tmp_path, run=f"run{len(ours)}")
        started = wait_for(lambda: [e for e in store.events(key["first"]) if e["event"] == "started"])
        ours.append(started[0]["time"] - began)
        wait_for(lambda: store.is_done(key["first"]))

    benchmark.pedantic(ours_once, rounds=ROUNDS)
    median = sorted(ours)[ROUNDS // 2], sorted(empty)[ROUNDS // 2]
    benchmark.extra_info.update(ours_s=median[0], empty_job_s=median[1], overhead_s=median[0] - median[1])
    print(f"\nsubmit to first step {median[0]:.2f} s, an empty job {median[1]:.2f} s, ours {median[0] - median[1]:.2f} s")
