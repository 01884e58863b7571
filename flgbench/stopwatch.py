"""Times what `flgbench.latency` prepared: passes and whole clips, row by row, with memory and energy, as tidy rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from flgbench.devices import ENERGY_SECONDS, Driver
from flgbench.interleaving import interleaved
from flgbench.latency import Cell
from flgbench.models.base import Condition, VideoModel
from flgbench.models.cache import FirstBlockCache
from flgbench.sampling import generate
from flgbench.timing import DeviceMemory, Told, now, time_encoding, time_told, warm_up, weight_bytes

EAGER, COMPILED = "eager", "compiled"
WARM_SECONDS = 60.0  # of single passes of one network
PARTS = ("encode_text_s", "encode_image_s")
UNITS = {"s": "s", "gib": "GiB", "j": "J", "nfe": "passes"}


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


@torch.inference_mode()
def time_pass(model: VideoModel, x: torch.Tensor, condition: Condition) -> float:
    """Seconds of one bare network pass."""
    t = torch.full((1,), 0.5, device=x.device)
    began = now()
    model.velocity(x, t, condition)
    return now() - began


@torch.inference_mode()
def time_encoders(model: VideoModel, images: torch.Tensor, captions: list[str], rows: Rows, i: int) -> None:
    """Text and image encoder apart, of condition `i`."""
    works = (lambda: model.encode_text(captions[i : i + 1]), lambda: model.encode_image(images[i : i + 1]))
    for metric, work in zip(PARTS, works, strict=True):
        began = now()
        work()
        rows.add("encoders", metric, now() - began, i)


def encode_all(model: VideoModel, images: torch.Tensor, captions: list[str], rows: Rows) -> list[Told]:
    """All conditions, encoded and timed; then the encoders' memory is given back, before the denoiser needs it."""
    time_encoding(model, images[:1], captions[:1])  # the first call reads the encoders
    told = []
    for i in range(len(captions)):
        time_encoders(model, images, captions, rows, i)
        told.append(time_encoding(model, images[i : i + 1], captions[i : i + 1]))
    model.release_encoders()
    return told


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
    told: list[Told] | None = None  # all conditions, where the encoders are gone (`encode_all`)
    warmups: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, tuple[float, float]] = field(default_factory=lambda: defaultdict(lambda: (0.0, 0.0)))

    def __post_init__(self) -> None:
        model = self.lanes[0].model
        self.condition = self._told(0).condition
        self.noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
        # Lanes of one network and mode share its passes: the first of them speaks for all.
        self.networks: dict[int, list[Lane]] = defaultdict(list)
        for lane in self.lanes:
            self.networks[id(lane.model)].append(lane)

    def _told(self, i: int) -> Told:
        if self.told is not None:
            return self.told[i]
        return time_encoding(self.lanes[0].model, self.images[i : i + 1], self.captions[i : i + 1])

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

    def _encoders(self, i: int) -> None:
        if self.told is None:
            time_encoders(self.lanes[0].model, self.images, self.captions, self.rows, i)

    def _passes(self, i: int) -> None:
        for repeat in range(self.passes):
            for lanes in self.networks.values():
                seconds = time_pass(lanes[0].model, self.noise, self.condition)
                for lane in lanes:
                    self.rows.add(lane.name, "pass_s", seconds, i, repeat)

    def _clip(self, lane: Lane, i: int) -> None:
        before = self.driver.joules() if self.driver.handle is not None else 0.0
        passed, kept = lane.model.tally.passes, len(lane.model.blocks) / self.blocks
        began = now()
        with DeviceMemory() as memory:
            times = time_told(lane.model, lane.cell.sampler, self._told(i), i, cache=lane.cache)
        joules = (self.driver.joules() - before) if self.driver.handle is not None else 0.0
        spent, energy = self.spent[lane.name]
        self.spent[lane.name] = spent + now() - began, energy + joules
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
