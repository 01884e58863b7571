"""The shipped teacher: its gates were measured on these weights, and it passes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Flgbench
from toy_hunyuan import build, installed

from flgbench.contracts import FamilyPreset
from flgbench.data import shapes
from flgbench.models.checkpoint_family import WEIGHTS
from flgbench.models.families import WanXFamily
from flgbench.models.hunyuan_family import HunyuanFamily
from flgbench.models.tiny import gates
from flgbench.models.tiny.gates import TEACHER_GATES
from flgbench.shipped import HASHES
from flgbench.store import sha256

GATES, HUNYUAN_GATES = (
    json.loads((family().folder("tiny") / "gates.json").read_text()) for family in (WanXFamily, HunyuanFamily)
)


@pytest.mark.parametrize(("family", "conditions"), [("wanx", 256), ("hunyuan", 256), ("hunyuan-ati2v", 32)])
def test_the_gates_were_measured_on_the_shipped_weights(family: str, conditions: int) -> None:
    folder = WEIGHTS / f"{family}-tiny"
    told = json.loads((folder / "gates.json").read_text())
    assert told["weights"] == sha256(folder / HASHES)
    assert told["conditions"] >= conditions
    assert set(TEACHER_GATES) < set(told["gates"])


@pytest.mark.parametrize("gate", GATES["gates"])
@pytest.mark.parametrize("measured", [GATES, HUNYUAN_GATES], ids=["wanx", "hunyuan"])
def test_the_shipped_teacher_passes(measured: dict, gate: str) -> None:
    found = measured["gates"][gate]
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


class Here:
    """An executor that does the work where it is asked."""

    def __init__(self, *given: object) -> None: ...

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *given: object) -> None: ...

    map = staticmethod(map)


def test_the_same_command_gates_any_tiny_family(tmp_path: Path, flgbench: Flgbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy hunyuan of five random blocks: judged with its embedded scale, CFG beside it, and found wanting."""
    samplers = gates.row_samplers(HunyuanFamily().preset("tiny"))
    told = {name: (s.embedded_guidance, s.guidance_scale, s.nfe) for name, s in samplers.items()}
    assert told["euler 50, embedded guidance"] == told["3 middle blocks deleted"] == (2.0, 1.0, 50)
    assert told["euler 50 x CFG"] == (None, 2.0, 100) and told["euler 4"] == (None, 1.0, 4)
    names = ("euler 50, embedded guidance", "3 middle blocks deleted")
    few = {name: samplers[name].model_copy(update={"num_inference_steps": 1}) for name in names}
    monkeypatch.setattr(gates, "row_samplers", lambda preset: few)
    monkeypatch.setattr(gates, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(gates, "_median_seconds", lambda action, runs: action() is not None and 1.0)
    model = build()
    assert list(gates.middle(model)) == [1, 2, 3]
    with installed(model, tmp_path / "weights") as folder:
        verb = ("pretrain", "--model", "hunyuan", "--gates", "--conditions", "8", "--seeds", "1")
        code, printed, err = flgbench(*verb)
        assert code == 0, err
        written = json.loads((folder / "hunyuan-tiny" / "gates.json").read_text())
        assert written == json.loads(printed) and not written["passed"]
        assert written["command"] == " ".join(("flgbench", *verb))
        assert written["weights"] == sha256(folder / "hunyuan-tiny" / HASHES)
        assert list(written["rows"]) == ["real", "vae round trip", *names]
        judged = written["rows"]["euler 50, embedded guidance"]
        assert written["gates"]["colour"]["value"] == round(judged["colour"]["mean"], 4)
        assert written["rows"]["real"]["joint"]["mean"] == 1.0
        HunyuanFamily().load("tiny")  # the gates are no part of what is hashed


def test_the_middle_is_what_it_was() -> None:
    """For the ten blocks of the shipped teacher, the three that `gates.json` says were deleted."""
    ten = type("Model", (), {"blocks": [None] * 10})
    assert tuple(gates.middle(ten)) == (4, 5, 6)  # type: ignore[arg-type]
    guided = FamilyPreset(3.0, 2.0, 50, (17, 64, 64), 8, 10, 0.2)
    assert set(gates.row_samplers(guided)) | {"real", "vae round trip"} == set(GATES["rows"])


@pytest.mark.parametrize("family", ["wanx-tiny", "hunyuan-tiny", "hunyuan-ati2v-tiny"])
def test_what_is_written_is_strict_json(family: str) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads((WEIGHTS / family / "gates.json").read_text(), parse_constant=refuse)


def test_what_no_clip_shows_is_none_and_passes_no_gate() -> None:
    nowhere = np.full(4, np.nan)
    measured = {"turn_error": nowhere, **{f"observed_{name}": nowhere for name in shapes.LAWS}}
    row = gates._summary(measured, np.arange(4))
    assert row["turn_error"] == {"mean": None, "n": 0} and row["hidden_tv_turn"] is None
    for gate in ("centroid error at the turn", "hidden turn"):
        judged = gates._judge(row, *gates.TEACHER_GATES[gate])
        assert judged["value"] is None and not judged["passed"]
