"""Plans of toy steps (see toy_steps/), a small run by its options, and profiles written for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flgbench.cells import Step
from flgbench.plan import Plan

SMALL = ("--methods", "none", "--baselines", "frozen_image,real", "--conditions", "2", "--pairs", "3")
ON_DEVCLUSTER = (*SMALL, "--executor", "slurm", "--profile", "devcluster")


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


def write(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")
