"""`flgbench latency` end to end at tiny size, and what it is made of: shapes, back ends, peaks, interleaving."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Flgbench, assert_refused
from torch import nn

from flgbench import environment, latency, latency_document, stopwatch
from flgbench.contracts import FamilyPreset
from flgbench.devices import Driver
from flgbench.errors import UsageError
from flgbench.interleaving import interleaved, seldom_timed, timed_clips
from flgbench.models import attention_backend, random_weights
from flgbench.models.base import StudentShape
from flgbench.models.families import WanXFamily
from flgbench.models.parts import Part
from flgbench.models.wanx import WanX
from flgbench.peaks import peak
from flgbench.registry import registry
from flgbench.settings import build_settings
from flgbench.stage import Roles, TrainingData
from flgbench.timing import warm_up, weight_bytes
from methods.parts.temporal_attention import TemporalPruning, TemporalPruningSettings
from reports import latency_report

SIZE = ("--weights", "random", "--frames", "5", "--height", "32", "--width", "32")
SMALL = (*SIZE, "--passes", "1", "--threads", "1", "--json")
PRESET = WanXFamily().preset("tiny")


def method_shape(name: str, preset: FamilyPreset = PRESET, **values: Any) -> StudentShape:
    cls = registry("methods").get(name)
    return cls(build_settings(cls.Settings, values, name), preset).shape()


def test_random_students_are_timed_side_by_side(flgbench: Flgbench, tmp_path: Path) -> None:
    methods = "fastlightgen,euler,f3_pruning_b,first-block-cache"
    code, out, err = flgbench("latency", "--methods", methods, "--pairs", "2", *SMALL)
    assert code == 0, err
    assert "tiny (random weights, fp32), 5 frames of 32x32: about" in err and "GiB on" in err
    answer = json.loads(out)
    rows = {row["row"]: row for row in answer["rows"]}
    assert list(rows) == ["euler", "fastlightgen", "f3_pruning_b", "first-block-cache"]  # the reference first

    document = json.loads((tmp_path / "flgbench-latency/latency.json").read_text())
    cells = {cell["row"]: cell for cell in document["cells"]}
    assert document["weights"] == "random" and "random weights" in document["note"]
    assert document["settings"]["clip"] == [5, 32, 32] and document["machine"]["torch"] == torch.__version__.split("+")[0]
    assert {row["weights"] for row in document["rows"]} == {"random"}
    assert cells["fastlightgen"]["blocks"] == 7 and cells["f3_pruning_b"]["self_attention"] == {"none": 5, "full": 5}
    teacher = cells["euler"]["parameters"]
    assert cells["fastlightgen"]["parameters"] < cells["f3_pruning_b"]["parameters"] < teacher
    assert document["attention"]["ran"] == {row: ["flash"] for row in rows}

    counted = {r["row"]: r["value"] for r in document["rows"] if r["metric"] == "nfe"}
    assert counted == {"euler": 100, "fastlightgen": 4, "f3_pruning_b": 100, "first-block-cache": 100}
    for metric, n in {"denoise_s": 8, "end_to_end_s": 8, "pass_s": 8, "encode_text_s": 2, "encode_image_s": 2}.items():
        values = [row["value"] for row in document["rows"] if row["metric"] == metric]
        assert len(values) == n and all(v > 0 for v in values), metric
    memory = [row for row in document["rows"] if row["metric"] == "peak_memory_gib"]
    assert all(row["value"] is None and row["status"] == "missing" and "CPU" in row["reason"] for row in memory)

    fast = rows["fastlightgen"]["values"]
    assert fast["nominal"]["value"] == pytest.approx(100 / 4 / 0.7)
    assert fast["denoise"]["n"] == 2 and fast["denoise"]["low"] < fast["denoise"]["value"] < fast["denoise"]["high"]
    # Four passes of fewer blocks against a hundred: whatever the machine does meanwhile.
    assert fast["denoise"]["value"] > 5 and 1 < fast["end_to_end"]["value"] < fast["denoise"]["value"]
    assert fast["mfu"]["value"] is None and "data sheet" in fast["mfu"]["reason"]
    assert rows["first-block-cache"]["values"]["overhead"]["reason"] == "a cache cuts passes short"
    assert all(Path(file).stat().st_size > 0 for file in answer["files"])
    assert {Path(file).suffix for file in answer["files"]} == {".json", ".md", ".csv", ".tex", ".png", ".pdf"}


def test_single_passes_and_one_condition_say_what_they_lack(flgbench: Flgbench, tmp_path: Path) -> None:
    arguments = ("--methods", "euler-4,icmd,dmd2", "--passes-only", "icmd", "--pairs", "1", "--set", "dmd2.steps=2")
    code, out, err = flgbench("latency", *arguments, *SMALL, "--out", str(tmp_path / "o"))
    assert code == 0, err
    rows = {row["row"]: row["values"] for row in json.loads(out)["rows"]}
    assert rows["icmd"]["pass_s"]["value"] > 0
    assert rows["icmd"]["from_passes_s"]["value"] == pytest.approx(100 * rows["icmd"]["pass_s"]["value"])
    assert rows["icmd"]["denoise_s"] == {"value": None, "low": None, "high": None, "n": 0, "reason": latency_report.NO_CLIPS}
    assert rows["dmd2"]["denoise_s"]["value"] > 0 and "euler" in rows["dmd2"]["nominal"]["reason"]
    table = (tmp_path / "o/latency.md").read_text()
    assert "no whole clips were made" in table and "no reference" in table


@pytest.mark.parametrize("family", ["wanx", "hunyuan"])
def test_conditions_are_encoded_before_the_denoiser_is_made(family: str, flgbench: Flgbench, tmp_path: Path) -> None:
    sized = ("--frames", "5", "--height", "32", "--width", "32", "--passes", "1", "--threads", "1", "--json")
    said = ("--model", family, "--weights", "random", "--methods", "dmd2,fastlightgen", "--pairs", "2", "--encode-first")
    code, out, err = flgbench("latency", *said, *sized)
    assert code == 0, err
    assert [row["values"]["text_s"]["n"] for row in json.loads(out)["rows"]] == [2, 2]
    rows = json.loads((tmp_path / "flgbench-latency/latency.json").read_text())["rows"]
    assert "encoded beforehand" in (tmp_path / "flgbench-latency/latency.md").read_text()
    # One encoding of each condition, told to every row.
    once = {(r["row"], r["condition"]): r["value"] for r in rows if r["metric"] == "text_s"}
    assert once["dmd2", 0] == once["fastlightgen", 0] != once["dmd2", 1] == once["fastlightgen", 1]
    for metric in ("encode_text_s", "encode_image_s"):
        assert [r["condition"] for r in rows if r["metric"] == metric] == [0, 1]
    by = {(r["row"], r["metric"], r["condition"]): r["value"] for r in rows}
    parts = (by["dmd2", part, 1] for part in ("text_s", "denoise_s", "decode_s"))
    assert by["dmd2", "end_to_end_s", 1] == pytest.approx(sum(parts))


@pytest.mark.parametrize("family", ["wanx", "hunyuan"])
def test_encoders_are_gone_before_the_denoiser_is_there(family: str) -> None:
    made: Any = registry("families").get(family)(None, None).untrained("tiny", (5, 32, 32), "cpu", torch.float32)
    images, captions = latency_document.make_conditions(made, (5, 32, 32), 2)
    told = stopwatch.encode_all(made, images, captions, stopwatch.Rows("random"))
    assert all(part.loaded is None for part in made.held() if isinstance(part, Part)) and len(made.held()) > 4
    assert [len(t.condition) for t in told] == [1, 1] and all(t.seconds > 0 for t in told)
    again = made.condition(images, captions)
    torch.testing.assert_close(torch.cat([t.condition.text for t in told]), again.text)


def test_random_weights_are_spread_as_their_layers_ask_and_repeat() -> None:
    with random_weights.born("cpu", torch.bfloat16):
        large, small = nn.Linear(2048, 1536), nn.Linear(64, 64)
    drawn, weight = random_weights.DRAWN, large.weight.detach().float().view(-1)
    assert large.weight.dtype == torch.bfloat16 and len(weight) == 3 * drawn
    assert torch.equal(weight[:drawn], weight[drawn : 2 * drawn]) and torch.equal(weight[:drawn], weight[2 * drawn :])
    bound = 2048**-0.5  # torch's default for a linear layer: uniform up to it
    assert weight.abs().max() <= 1.01 * bound and weight.std() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert len(small.weight.unique()) > 1000


def test_a_speed_up_from_one_condition_has_no_interval() -> None:
    document = document_of({"euler": [8.0], "dmd2": [0.4]})
    found = latency_report.summaries(document)[1].values["denoise"]
    assert (found.value, found.low, found.n) == (pytest.approx(20), None, 1) and "no interval" in found.reason


def document_of(denoise: dict[str, list[float]]) -> dict[str, Any]:
    """A document with given denoising times, passes of 0.1 s and 1 s around the denoiser."""
    nfe = {"euler": 100, "dmd2": 4}
    cells = [
        {
            "row": name,
            "label": name,
            "mode": "eager",
            "kind": "reference" if name == "euler" else "method",
            "nfe": nfe[name],
            "kept_blocks": 1.0,
            "parameters": 10,
            "teacher_parameters": 10,
            "sampler": {},
            "pass_flops": 50e12,
        }
        for name in denoise
    ]
    rows = []
    for name, times in denoise.items():
        for i, seconds in enumerate(times):
            for metric, value in (("denoise_s", seconds), ("pass_s", 0.1), ("end_to_end_s", seconds + 1)):
                rows.append({"row": name, "metric": metric, "condition": i, "value": value, "reason": ""})
    return {"cells": cells, "rows": rows, "peak_flops": {"value": 1000e12, "source": "a sheet"}}


def test_numbers_derived_from_samples() -> None:
    euler, dmd2 = latency_report.summaries(document_of({"euler": [10.1, 10.3], "dmd2": [0.4, 0.44]}))
    assert euler.values["mfu"].value == pytest.approx(0.5)  # 50 TFLOP in 0.1 s of a peak of 1,000 TFLOP/s
    assert euler.values["overhead"].value == pytest.approx(0.02) and dmd2.values["overhead"].value == pytest.approx(0.05)
    ratios = np.array([10.1 / 0.4, 10.3 / 0.44])
    assert dmd2.values["denoise"].value == pytest.approx(np.exp(np.log(ratios).mean()))
    assert dmd2.values["work"].value == dmd2.values["nominal"].value == 25


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "dmd3"), ("dmd3", "did you mean 'dmd2'")),
        (("--methods", "euler,euler"), ("twice",)),
        (("--methods", "real"), ("'real'", "no passes to time")),
        (("--scale", "15b"), ("15b", "tiny")),
        (("--model", "wan"), ("wan", "wanx")),
        (("--passes-only", "euler-4"), ("--passes-only euler-4", "not among")),
        (("--methods", "euler", "--set", "lcm.keep=0.5"), ("lcm", "not among")),
        (("--set", "icmd.keep=2"), ("icmd.keep",)),
        (("--frames", "9"), ("--weights random",)),
        (("--weights", "random", "--frames", "6"), ("--frames 6", "multiple of 4")),
        (("--weights", "random", "--height", "40"), ("--height 40", "multiples of 16")),
        (("--attention", "cudnn"), ("--attention cudnn", "flash, math")),
        (("--pairs", "0"), ("--pairs",)),
    ],
)
def test_wrong_use_is_one_line(arguments: tuple[str, ...], words: tuple[str, ...], flgbench: Flgbench) -> None:
    assert_refused(flgbench("latency", *arguments, "--device", "cpu"), *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said(flgbench: Flgbench) -> None:
    assert_refused(flgbench("latency", "--device", "cuda"), "--device cuda", "no GPU")


def test_a_cpu_refuses_what_takes_more_than_an_hour(flgbench: Flgbench) -> None:
    size = ("--frames", "201", "--height", "512", "--width", "512")
    refused = flgbench("latency", "--weights", "random", "--device", "cpu", *size)
    assert_refused(refused, "201 frames of 512x512", "would take", "--device cuda", "within an hour")


def test_the_full_size_is_weighed_before_it_is_built(flgbench: Flgbench) -> None:
    refused = flgbench("latency", "--scale", "14b", "--device", "cpu", "--dtype", "bf16", "--pairs", "1")
    assert_refused(refused, "--scale 14b at 81 frames of 480x832", "smaller --frames")
    found = re.search(r"and ([0-9.]+) GiB on", refused[2])
    # 16.4 B of the denoiser and 5.7 B of the text encoder in 16 bits, 0.8 B around them in 32, and what a clip takes.
    assert found and 48 < float(found[1]) < 56


def test_encoding_first_needs_the_larger_of_two_not_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "free_memory", lambda: 2**50)
    family, needed = WanXFamily(), {}
    for first in (False, True):
        values = {"scale": "5b", "names": ("euler",), "passes_only": ("euler",), "pairs": 1, "dtype": "bf16"}
        settings = latency.LatencySettings(**values, weights="random", encode_first=first)
        cells = latency.find_cells(settings, family.preset("5b"))
        needed[first] = latency.estimate(settings, cells, family, (5, 64, 64)).bytes / 1e9
    # 5.0 B of the denoiser and 5.68 B of the text encoder in 16 bits, 0.70 B of the autoencoder in 32.
    assert needed[False] == pytest.approx(10.0 + 11.36 + 2.82, abs=0.1)
    assert needed[True] == pytest.approx(11.36 + 2.82, abs=0.1)
    monkeypatch.setattr(environment, "free_memory", lambda: 20e9 + latency.LIBRARIES)
    with pytest.raises(UsageError, match="give --encode-first, smaller"):
        latency.estimate(settings.model_copy(update={"encode_first": False}), cells, family, (5, 64, 64))
    latency.estimate(settings, cells, family, (5, 64, 64))


def test_what_others_took_of_the_memory_is_not_free(flgbench: Flgbench, monkeypatch: pytest.MonkeyPatch) -> None:
    few = ("latency", "--methods", "euler", "--passes-only", "euler", "--pairs", "1", "--device", "cpu", *SIZE)
    monkeypatch.setattr(environment, "free_memory", lambda: latency.LIBRARIES + 2**20)
    assert_refused(flgbench(*few), "--scale tiny", "which has 0.000977 GiB free", "smaller --frames")
    monkeypatch.undo()
    assert 2**20 < environment.free_memory() < environment.memory_gb() * 2**30


def test_settings_tell_what_students_compute(tiny_data: TrainingData, tiny_model: WanX, tmp_path: Path) -> None:
    dense = StudentShape.without(10)
    assert method_shape("dmd2") == method_shape("lcm") == method_shape("magic_distillation") == dense
    assert [len(method_shape(name).kept) for name in ("fastlightgen", "icmd", "control_delete_random")] == [7, 7, 7]
    assert len(method_shape("lcm", keep=0.5).kept) == 5 and len(method_shape("icmd", keep=0.9).kept) == 9
    assert Counter(method_shape("f3_pruning").self_attention) == {"frame": 5, "full": 5}
    # As many layers as the stage itself changes, on the model it changes.
    settings = TemporalPruningSettings(variant="b", ratio=0.5, clips=1, times=1)
    TemporalPruning(settings, Roles(tiny_model, tiny_data, {})).compute(tmp_path)
    changed = json.loads((tmp_path / "temporal_mass.json").read_text())["changed"]
    found = method_shape("f3_pruning_b", FamilyPreset(3.0, 2.0, 50, (17, 64, 64), 8, 4, 0.2), ratio=0.5)
    assert found.self_attention.count("none") == len(changed)


def test_students_of_one_teacher_share_its_weights(tiny_model: WanX, tiny_data: TrainingData) -> None:
    shape = StudentShape((0, 2, 3), ("full", "frame", "none"))
    own = tiny_model.shaped(shape)
    teacher = tiny_model.copy()
    teacher.shares_weights = True
    shared = teacher.shaped(shape)
    assert shared.self_attention == own.self_attention == shape.self_attention and shared.kept_blocks == (0, 2, 3)
    theirs = {p.data_ptr() for p in teacher.transformer.parameters()}
    apart = [p for p in shared.transformer.parameters() if p.data_ptr() not in theirs]
    # But for the shorter modulation table of the block without self-attention.
    assert [p.shape for p in apart] == [torch.Size([1, 3, 24])]
    assert not theirs & {p.data_ptr() for p in own.transformer.parameters()}
    x = torch.randn(1, *tiny_model.latent_shape, generator=torch.Generator().manual_seed(0))
    condition, t = tiny_data.condition.select(slice(0, 1)), torch.full((1,), 0.5)
    torch.testing.assert_close(shared.velocity(x, t, condition), own.velocity(x, t, condition))
    assert [len(m.blocks) for m in (teacher, tiny_model)] == [4, 4] and set(tiny_model.self_attention) == {"full"}
    assert weight_bytes(own) < weight_bytes(tiny_model)


def test_the_back_end_that_ran_is_seen() -> None:
    q = torch.randn(1, 2, 12, 8)
    for order in (["flash", "math"], ["math"]):
        with attention_backend.preferring(order), torch.no_grad(), attention_backend.observed() as seen:
            F.scaled_dot_product_attention(q, q[:, :, :5], q[:, :, :5])
        assert seen == {order[0]: "12 queries on 5 keys"}
        assert attention_backend.check(seen, order, allow_fallback=False) == [order[0]]


def test_a_slower_back_end_is_an_error_unless_allowed() -> None:
    # Queries that need a gradient and a mask: torch's fused CPU attention takes no mask that needs one.
    q, mask = torch.randn(1, 2, 12, 8), torch.zeros(12, 12, requires_grad=True)
    order = attention_backend.resolve("auto", torch.device("cpu"), torch.float32)
    with attention_backend.preferring(order), attention_backend.observed() as seen:
        F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    assert list(seen) == ["math"]
    with pytest.raises(UsageError, match=r"12 queries.*'math', slower than 'flash'.*--allow-fallback"):
        attention_backend.check(seen, order, allow_fallback=False)
    assert attention_backend.check(seen, order, allow_fallback=True) == ["math"]


def test_peaks_are_of_data_sheets() -> None:
    h100, source = peak("NVIDIA H100 80GB HBM3", "bf16")
    assert h100 == peak("NVIDIA H200", "bf16")[0] == 989.5e12 and "data sheet" in source
    assert peak("NVIDIA H200 NVL", "bf16")[0] == 835.5e12 and peak("NVIDIA H100 PCIe", "bf16")[0] == 756.5e12
    assert peak("NVIDIA A100-SXM4-80GB", "fp32")[0] == 19.5e12
    for unknown in ("NVIDIA GH200 480GB", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "AMD EPYC"):
        value, reason = peak(unknown, "bf16")
        assert value is None and unknown in reason


def test_a_cpu_has_no_energy() -> None:
    driver = Driver(torch.device("cpu"))
    assert driver.handle is None and driver.state() == {"reason": driver.reason} and "CPU" in driver.reason


def test_warm_up_ends_when_three_agree_or_time_is_up() -> None:
    times = iter([3.0, 1.0, 1.01, 1.005, 9.0])
    assert warm_up(lambda: next(times), seconds=100) == {"runs": 4, "settled": True}
    assert warm_up(lambda: 0.6) == {"runs": 2, "settled": False}
    unsteady = iter(range(1, 100))
    assert warm_up(lambda: next(unsteady) / 1000) == {"runs": 10, "settled": False}


def test_cells_are_interleaved_in_changing_order() -> None:
    cells = ["a", "b", "c", "d"]
    made = list(interleaved(cells, 6))
    rounds = [[name for _, name in made[i : i + 4]] for i in range(0, 24, 4)]
    assert [c for c, _ in made] == [i for i in range(6) for _ in cells]
    assert all(sorted(r) == cells for r in rounds) and len({tuple(r) for r in rounds}) > 2
    assert made == list(interleaved(cells, 6))
    seldom = list(interleaved(cells, 5, seldom={"b"}))
    assert [i for i, name in seldom if name == "b"] == [0, 2, 4]
    assert [i for i, name in seldom if name == "d"] == list(range(5))


def test_slow_cells_are_timed_seldom() -> None:
    passes = {"euler": 100, "pruned": 100, "twenty": 40, "eight": 16, "few": 4}
    assert seldom_timed(passes, "euler") == {"pruned", "twenty"}
    assert seldom_timed(passes, None) == seldom_timed({}, "euler") == set()
    made = Counter(name for _, name in interleaved(list(passes), 5, seldom_timed(passes, "euler")))
    assert made == timed_clips(passes, "euler", 5) == {"euler": 5, "pruned": 3, "twenty": 3, "eight": 5, "few": 5}
