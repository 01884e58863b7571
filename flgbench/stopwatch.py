"""Times what `flgbench.latency` prepared: single passes and whole clips, row by row, with memory and energy.

The result is one document (JSON): settings, machine, what each row is, and every sample in tidy rows.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from flgbench import environment, peaks
from flgbench.contracts import Family
from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.devices import ENERGY_SECONDS, Driver
from flgbench.latency import Cell, LatencySettings
from flgbench.models import attention_backend
from flgbench.models.base import Condition, StudentShape, VideoModel
from flgbench.models.cache import FirstBlockCache
from flgbench.sampling import build_cache, generate
from flgbench.steps.loading import evaluation_factors
from flgbench.timing import DeviceMemory, interleaved, now, time_clip, warm_up, weight_bytes

EAGER, COMPILED = "eager", "compiled"
WARM_SECONDS = 60.0  # of single passes of one network
IDLE_SECONDS = 10.0
PARTS = ("encode_text_s", "encode_image_s")
UNITS = {"s": "s", "gib": "GiB", "j": "J", "nfe": "passes"}
NOTE = (
    "Latency depends neither on the values of weights nor on which blocks a student lost: these rows are of random weights, "
    "in the shapes that the methods' settings give their students."
)


@dataclass
class Lane:
    """One timed row: a cell in one mode, on its network."""

    cell: Cell
    mode: str
    model: VideoModel
    cache: FirstBlockCache | None

    @property
    def name(self) -> str:
        return self.cell.name if self.mode == EAGER else f"{self.cell.name}+compile"


@dataclass
class Rows:
    """The tidy table as it grows."""

    weights: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, lane: str, metric: str, value: float | None, condition: int = -1, sample: int = 0, reason: str = ""
    ) -> None:
        """A value, or None with the reason."""
        status = "ok" if value is not None else "missing"
        unit = UNITS[metric.rpartition("_")[2]]
        row = {"row": lane, "metric": metric, "condition": condition, "sample": sample, "value": value, "unit": unit}
        self.rows.append(row | {"higher_is_better": False, "status": status, "reason": reason, "weights": self.weights})


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


@torch.inference_mode()
def time_pass(model: VideoModel, x: torch.Tensor, condition: Condition) -> float:
    """Seconds of one bare network pass."""
    t = torch.full((1,), 0.5, device=x.device)
    began = now()
    model.velocity(x, t, condition)
    return now() - began


@dataclass
class Stopwatch:
    """The measurement of all lanes. `say` is told what is being done."""

    lanes: list[Lane]
    images: torch.Tensor
    captions: list[str]
    passes: int
    passes_only: tuple[str, ...]
    say: Callable[[str], None]
    rows: Rows
    driver: Driver
    idle: float | None  # watts
    blocks: int  # of the teacher
    warmups: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, tuple[float, float]] = field(default_factory=lambda: defaultdict(lambda: (0.0, 0.0)))

    def __post_init__(self) -> None:
        model = self.lanes[0].model
        self.condition = self._told(0)
        self.noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
        # Lanes of one network and mode share its passes: the first of them speaks for all.
        self.networks: dict[int, list[Lane]] = defaultdict(list)
        for lane in self.lanes:
            self.networks[id(lane.model)].append(lane)

    @torch.inference_mode()
    def _told(self, i: int) -> Condition:
        return self.lanes[0].model.condition(self.images[i : i + 1], self.captions[i : i + 1])

    def warm(self) -> None:
        """First calls, recorded as such; then single passes until three agree; then each lane's own loop once."""
        for lanes in self.networks.values():
            once = partial(time_pass, lanes[0].model, self.noise, self.condition)
            names = ", ".join(lane.name for lane in lanes)
            self.say(f"warming up {names}")
            first = once()
            for lane in lanes:
                self.rows.add(lane.name, "first_pass_s", first)
            self.warmups[names] = warm_up(once, seconds=WARM_SECONDS)
        with torch.inference_mode():
            for lane in self.lanes:
                if lane.cell.name not in self.passes_only:
                    brief = lane.cell.sampler.model_copy(update={"num_inference_steps": 1})
                    generate(lane.model, self.condition, [(0, 0)], brief, cache=lane.cache)
            self.lanes[0].model.decode(self.noise)

    def measure(self) -> None:
        """All conditions: the shared encoders and every network's passes, then the clips in random order."""
        whole = {lane.name: lane for lane in self.lanes if lane.cell.name not in self.passes_only}
        done = -1
        for i, name in interleaved(list(whole), len(self.captions)):
            if i != done:
                self._encoders(i)
                self._passes(i)
                done = i
            self.say(f"condition {i + 1} of {len(self.captions)}: {name}")
            self._clip(whole[name], i)
        if not whole:
            for i in range(len(self.captions)):
                self._encoders(i)
                self._passes(i)
        for lane in self.lanes:
            self._energy(lane, lane.name in whole)

    @torch.inference_mode()
    def _encoders(self, i: int) -> None:
        model = self.lanes[0].model
        works = (lambda: model.encode_text(self.captions[i : i + 1]), lambda: model.encode_image(self.images[i : i + 1]))
        for metric, work in zip(PARTS, works, strict=True):
            began = now()
            work()
            self.rows.add("encoders", metric, now() - began, i)

    def _passes(self, i: int) -> None:
        for repeat in range(self.passes):
            for lanes in self.networks.values():
                seconds = time_pass(lanes[0].model, self.noise, self.condition)
                for lane in lanes:
                    self.rows.add(lane.name, "pass_s", seconds, i, repeat)

    def _clip(self, lane: Lane, i: int) -> None:
        one = slice(i, i + 1)
        before = self.driver.joules() if self.driver.handle is not None else 0.0
        passed, kept = lane.model.tally.passes, len(lane.model.blocks) / self.blocks
        with DeviceMemory() as memory:
            times = time_clip(lane.model, lane.cell.sampler, self.images[one], self.captions[one], i, cache=lane.cache)
        joules = (self.driver.joules() - before) if self.driver.handle is not None else 0.0
        spent, energy = self.spent[lane.name]
        self.spent[lane.name] = spent + times["end_to_end_s"], energy + joules
        for metric, seconds in times.items():
            self.rows.add(lane.name, metric, seconds, i)
        self.rows.add(lane.name, "nfe", round((lane.model.tally.passes - passed) / kept), i)
        if memory.growth is None or memory.reserved is None:
            self.rows.add(lane.name, "peak_memory_gib", None, i, reason="all rows share one process on a CPU")
            return
        self.rows.add(lane.name, "peak_memory_gib", (weight_bytes(lane.model) + memory.growth) / 2**30, i)
        self.rows.add(lane.name, "reserved_memory_gib", memory.reserved / 2**30, i)

    def _energy(self, lane: Lane, whole: bool) -> None:
        seconds, joules = self.spent[lane.name]
        if self.driver.handle is None:
            reason = self.driver.reason
        elif not whole:
            reason = "no whole clip was made"
        elif seconds < ENERGY_SECONDS:
            reason = f"{seconds:.1f} s of clips; the counter needs {ENERGY_SECONDS:.0f} s"
        else:
            clips = len(self.captions)
            self.rows.add(lane.name, "energy_j", joules / clips)
            if self.idle is not None:
                self.rows.add(lane.name, "energy_above_idle_j", (joules - self.idle * seconds) / clips)
            return
        self.rows.add(lane.name, "energy_j", None, reason=reason)


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
    lanes = make_lanes(teacher, cells, settings.compiled)
    images, captions = make_conditions(teacher, clip, settings.pairs)
    rows = Rows(settings.weights)
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
        )
        load_s = now() - began  # with what is read when first needed
        ran = observe(watch, order, settings.allow_fallback)
        watch.warm()
        facts = machine(device, settings.dtype, driver)
        watch.measure()
    peak, source = peaks.peak(environment.gpu() if device.type == "cuda" else environment.processor(), settings.dtype)
    return {
        "kind": "latency",
        "weights": settings.weights,
        "note": NOTE if settings.weights == "random" else "",
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
