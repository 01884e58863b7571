"""The shipped teacher: its gates were measured on these weights, and it passes them."""

from __future__ import annotations

import json

import pytest

from flgbench.models.families import WanXFamily
from flgbench.models.tiny.gates import TEACHER_GATES
from flgbench.shipped import HASHES
from flgbench.store import sha256

FOLDER = WanXFamily().folder("tiny")
GATES = json.loads((FOLDER / "gates.json").read_text())


def test_the_gates_were_measured_on_the_shipped_weights() -> None:
    assert GATES["weights"] == sha256(FOLDER / HASHES)
    assert GATES["conditions"] >= 256
    assert set(TEACHER_GATES) < set(GATES["gates"])


@pytest.mark.parametrize("gate", GATES["gates"])
def test_the_shipped_teacher_passes(gate: str) -> None:
    found = GATES["gates"][gate]
    assert found["passed"], f"{gate}: {found['value']:.3f}, wanted {found['limit']}"


def apart(better: dict, worse: dict) -> bool:
    return better["low"] > worse["high"]


def separating(row: str) -> list[str]:
    """Measures that say with intervals apart that the teacher is better than `row`."""
    teacher, other = GATES["rows"]["euler 50 x CFG"], GATES["rows"][row]
    shares = ("joint", "presence", "colour", "shape", "direction", "second_present", "second_colour")
    shares += ("sharpness_ratio", "first_frame_psnr")
    return [name for name in shares if apart(teacher[name], other[name])]


@pytest.mark.parametrize("row", ["euler 8", "euler 4", "euler 2", "euler 1", "renoise 4", "3 middle blocks deleted"])
def test_the_ground_separates(row: str) -> None:
    assert len(separating(row)) >= 3


def test_quality_grows_with_steps() -> None:
    joint = [GATES["rows"][f"euler {n}"]["joint"]["mean"] for n in (1, 2, 4, 8)]
    assert joint == sorted(joint)
    assert joint[-1] < GATES["rows"]["euler 50 x CFG"]["joint"]["mean"]
