"""One measurement of `flgbench latency`, from its settings to one document (JSON): machine, rows, samples."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from flgbench import environment, peaks
from flgbench.contracts import Family
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.devices import Driver
from flgbench.latency import Cell, LatencySettings
from flgbench.models import attention_backend
from flgbench.models.base import StudentShape, VideoModel
from flgbench.sampling import build_cache
from flgbench.steps.loading import evaluation_factors
from flgbench.stopwatch import COMPILED, EAGER, Lane, Rows, Stopwatch, encode_all
from flgbench.timing import now

IDLE_SECONDS = 10.0
NOTE = (
    "Latency depends neither on the values of weights nor on which blocks a student lost: these rows are of random weights, "
    "in the shapes that the methods' settings give their students."
)
ENCODED = "Conditions were encoded beforehand: memory and energy are those of denoising and decoding."


def make_lanes(teacher: VideoModel, cells: list[Cell], compiled: bool) -> list[Lane]:
    """A lane a cell and mode; cells of one shape share a network, and all networks their weights."""
    teacher.shares_weights = True
    networks: dict[tuple[StudentShape, str], VideoModel] = {}
    lanes = []
    for mode in (EAGER, COMPILED)[: 1 + compiled]:
        for cell in cells:
            if mode == COMPILED and cell.sampler.cache_threshold is not None:
                continue  # the cache's hooks are around the blocks and would run them uncompiled
            if (cell.shape, mode) not in networks:
                model = teacher.shaped(cell.shape)
                if mode == COMPILED:
                    for block in model.blocks:
                        block.compile()
                networks[cell.shape, mode] = model
            model = networks[cell.shape, mode]
            lanes.append(Lane(cell, mode, model, build_cache(model, cell.sampler)))
    return lanes


def make_conditions(model: VideoModel, clip: tuple[int, int, int], count: int) -> tuple[torch.Tensor, list[str]]:
    """First frames (count, H, W, 3) uint8 and captions of procedural clips, scaled to the clip's size."""
    factors = evaluation_factors(count)
    frames = shapes.render(factors)[:, 0].permute(0, 3, 1, 2).float()
    scaled = F.interpolate(frames, clip[1:], mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous(), captions_of(factors)


def idle_watts(driver: Driver) -> float | None:
    """Mean power of the idle board over `IDLE_SECONDS`; None without a counter."""
    if driver.handle is None:
        return None
    now()
    before = driver.joules()
    time.sleep(IDLE_SECONDS)
    return (driver.joules() - before) / IDLE_SECONDS


def machine(device: torch.device, dtype: str, driver: Driver) -> dict[str, Any]:
    """Hardware, versions and the driver's state."""
    found: dict[str, Any] = dict(environment.facts())
    if device.type == "cuda":
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        found |= {"gpu_memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)}
    return found | {"device": device.type, "dtype": dtype, "driver_state": driver.state()}


def observe(watch: Stopwatch, order: list[str], allow_fallback: bool) -> dict[str, list[str]]:
    """The attention back ends that ran in one pass of every eager network, by row. Raises UsageError for a slower one."""
    ran: dict[str, list[str]] = {}
    for lanes in watch.networks.values():
        if lanes[0].mode != EAGER:
            continue
        with torch.no_grad(), attention_backend.observed() as seen:
            lanes[0].model.velocity(watch.noise, torch.full((1,), 0.5), watch.condition)
        ran |= {lane.name: attention_backend.check(seen, order, allow_fallback) for lane in lanes}
    return ran


def measure(
    settings: LatencySettings,
    cells: list[Cell],
    family: Family,
    build: Callable[[], VideoModel],
    clip: tuple[int, int, int],
    order: list[str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The document of one measurement of `cells` on the model that `build` makes, with attention by the first of `order`.

    Raises UsageError where attention runs on a slower back end than asked and that is not allowed.
    """
    device = torch.device(settings.device)
    torch.set_num_threads(settings.threads)
    driver = Driver(device)
    began = now()
    say("building the model")
    teacher = build()
    images, captions = make_conditions(teacher, clip, settings.pairs)
    rows = Rows(settings.weights)
    told = encode_all(teacher, images, captions, rows) if settings.encode_first else None
    lanes = make_lanes(teacher, cells, settings.compiled)
    with attention_backend.preferring(order):
        watch = Stopwatch(
            lanes,
            images,
            captions,
            settings.passes,
            settings.passes_only,
            say,
            rows,
            driver,
            idle_watts(driver),
            len(teacher.blocks),
            told,
        )
        load_s = now() - began  # with what is read when first needed
        ran = observe(watch, order, settings.allow_fallback)
        watch.warm()
        facts = machine(device, settings.dtype, driver)
        watch.measure()
    notes = {NOTE: settings.weights == "random", ENCODED: settings.encode_first}
    peak, source = peaks.peak(environment.gpu() if device.type == "cuda" else environment.processor(), settings.dtype)
    return {
        "kind": "latency",
        "weights": settings.weights,
        "note": " ".join(text for text, holds in notes.items() if holds),
        "settings": settings.model_dump(mode="json") | {"clip": list(clip)},
        "machine": facts | {"driver_state_after": driver.state()},
        "peak_flops": {"value": peak, "source" if peak else "reason": source},
        "attention": {"asked": order[0], "ran": ran},
        "load_s": load_s,
        "idle_w": watch.idle,
        "warmups": watch.warmups,
        "cells": [_facts(lane, teacher, family) for lane in lanes],
        "rows": rows.rows,
    }


def _facts(lane: Lane, teacher: VideoModel, family: Family) -> dict[str, Any]:
    cell, model = lane.cell, lane.model
    flops = dict(family.pass_flops(model))
    return {
        "row": lane.name,
        "cell": cell.name,
        "mode": lane.mode,
        "label": cell.label,
        "kind": cell.kind,
        "changes": cell.changes,
        "sampler": cell.sampler.model_dump(mode="json", exclude_none=True),
        "nfe": cell.sampler.nfe,
        "kept_blocks": len(model.blocks) / len(teacher.blocks),
        "blocks": len(model.blocks),
        "self_attention": {kind: model.self_attention.count(kind) for kind in dict.fromkeys(model.self_attention)},
        "parameters": model.n_parameters,
        "teacher_parameters": teacher.n_parameters,
        "flops": flops or None,
        "pass_flops": sum(flops.values()) or None,
    }
