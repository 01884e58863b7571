"""Call VBench's own script in the environment that a user made for it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from flgbench.errors import UsageError

LOG = "vbench.log"


class ScoringFailed(Exception):
    """VBench ended without scores; the text says why and where its output is."""


def score(folder: Path, python: Path, script: Path, dimensions: Sequence[str], minutes: float) -> list[Path]:
    """Score the clips exported to `folder` and return the result files, in folder/results.

    Runs `python script` with the arguments of VBench's evaluate_i2v.py, custom images. Its output goes to
    folder/vbench.log. Raises UsageError for what is wrong before it starts, ScoringFailed for what happens after.
    """
    for path, what in ((folder / "manifest.json", "folder of `flgbench vbench export`"), (script, "script")):
        if not path.is_file():
            raise UsageError(f"{path} is not there: name the {what}")
    if not os.access(python, os.X_OK) or python.is_dir():
        raise UsageError(f"--python {python}: not a program; name the python of the environment that VBench is in")
    results = folder / "results"
    try:
        results.mkdir(exist_ok=True)
        (folder / LOG).touch()
    except OSError as error:
        raise UsageError(f"{folder}: cannot write there ({error.strerror})") from None
    before = set(results.glob("*_eval_results.json"))
    command = [str(python), str(script), "--mode", "custom_input", "--videos_path", str(folder / "videos")]
    command += ["--custom_image_folder", str(folder / "images"), "--output_path", str(results)]
    command += ["--dimension", *dimensions]
    log = folder / LOG
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(timeout=60 * minutes)
        except subprocess.TimeoutExpired:
            raise ScoringFailed(f"VBench was not done after {minutes:g} minutes and was ended; its output: {log}") from None
        finally:
            if process.poll() is None:  # it may have started others, which hold the GPU
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise ScoringFailed(f"VBench ended with code {code}: {lines[-1] if lines else 'no output'}; its output: {log}")
    made = sorted(set(results.glob("*_eval_results.json")) - before)
    if not made:
        raise ScoringFailed(f"VBench ended well but left no *_eval_results.json in {results}; its output: {log}")
    return made
