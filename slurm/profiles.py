"""Resource profiles: what a step asks of the scheduler, one TOML file a cluster, with overrides per step kind."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from flgbench.errors import UsageError
from flgbench.registry import did_you_mean
from flgbench.settings import Settings, build_settings

FOLDER = Path(__file__).parent / "profiles"
# File names, not an import: this module must stay without torch.
KINDS = sorted(p.stem for p in (Path(__file__).parent.parent / "flgbench" / "steps").glob("[!_]*.py") if p.stem != "loading")


class Resources(Settings):
    """What one job asks for: one task, or of a training one task per GPU on each of `nodes`.

    `gpus` and `memory_gb` (GiB) are per node, `cpus` per task.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = Field(1, ge=1)
    gpus: int = Field(0, ge=0)
    cpus: int = Field(1, ge=1)
    memory_gb: float = Field(4.0, gt=0)
    time_minutes: int = Field(60, ge=2)
    exclusive: bool = Field(False, description="the whole node; timed steps should have it")
    setup: tuple[str, ...] = Field((), description="shell lines before Python starts, such as `module load cuda`")
    options: dict[str, str | int | bool] = Field(default_factory=dict, description="further sbatch options, without --")

    @property
    def tasks_per_node(self) -> int:
        return max(1, self.gpus)

    def sbatch(self) -> dict[str, Any]:
        """The sbatch options by name, without what is not set; `True` stands for a bare flag."""
        options: dict[str, Any] = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks_per_node,
            "gpus-per-node": self.gpus or None,
            "cpus-per-task": self.cpus,
            "mem": f"{round(self.memory_gb * 1024)}M",
            "time": self.time_minutes,
            "exclusive": self.exclusive or None,
        }
        return {k: v for k, v in (options | self.options).items() if v is not None and v is not False}

    def flags(self) -> list[str]:
        """The same as command line flags."""
        return [f"--{name}" if value is True else f"--{name}={value}" for name, value in self.sbatch().items()]


class Hardware(Settings):
    """Facts of the compute node, where they differ from the submitting machine's: they key latency (see environment.py)."""

    processor: str | None = None
    cores: int | None = None
    gpu: str | None = None
    dtype: str | None = None


class Profile(Resources):
    """Resources of every step, and under `kinds` what differs for a kind of step."""

    name: str
    signal_seconds: int = Field(60, ge=5, description="from SLURM's warning to the end of the time")
    max_timeouts: int = Field(1000, ge=0, description="time limits reached before a step counts as failed")
    shared_folder: bool = Field(False, description="the nodes mount the output folder, though it is a local disk here")
    hardware: Hardware = Hardware()
    kinds: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def resources(self, kind: str) -> Resources:
        """What a step of `kind` asks for. Raises UsageError for a wrong override."""
        base = {name: getattr(self, name) for name in Resources.model_fields}
        made: Resources = build_settings(Resources, base | self.kinds.get(kind, {}), f"kinds.{kind}")
        if kind in KINDS and kind != "train":
            for name, most in (("nodes", made.nodes), ("gpus", made.gpus)):
                if most > 1:
                    where = f"kinds.{kind}" if name in self.kinds.get(kind, {}) else "profile"
                    raise UsageError(f"{where}.{name}: only [kinds.train] may ask for more than 1, got {most} for {kind}")
        return made


def names() -> list[str]:
    return sorted(p.stem for p in FOLDER.glob("*.toml"))


def load_profile(name: str) -> Profile:
    """The profile `name` of this package, or of a file `name` that ends in .toml.

    Raises UsageError, with file and line, for an unknown name, broken TOML, an unknown key or a wrong value.
    """
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        if name.endswith(".toml"):
            raise UsageError(f"--profile {name}: cannot read this file") from None
        hint = did_you_mean(name, names())
        raise UsageError(f"no profile '{name}'{hint} Known: {', '.join(names())}, or a path ending in .toml") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: {error}") from None
    _check_kinds(path, text, values.get("kinds", {}))
    try:
        profile = build_settings(Profile, {"name": path.stem} | values, "profile")
        for kind in KINDS:
            profile.resources(kind)
    except UsageError as error:
        raise UsageError(f"{path}{_line(text, str(error))}: {error}") from None
    return profile


def _check_kinds(path: Path, text: str, kinds: Any) -> None:
    for kind, values in kinds.items() if isinstance(kinds, dict) else ():
        if kind not in KINDS or not isinstance(values, dict):
            wrong = f"kinds.{kind} is not a table" if kind in KINDS else f"no step kind '{kind}'{did_you_mean(kind, KINDS)}"
            raise UsageError(f"{path}{_line_of(text, ('kinds', kind))}: {wrong} Kinds: {', '.join(KINDS)}")


def _line(text: str, message: str) -> str:
    """Where the setting that `message` is about stands in the file: its dotted name opens the message."""
    found = re.match(r"((?:profile|kinds)[.\w-]*)(?: has no setting '([^']+)'|: )", message)
    if not found:
        return ""
    path = [*found[1].removeprefix("profile").lstrip(".").split("."), *filter(None, [found[2]])]
    # An item of a list has no line of its own: that of the list will do.
    return next(filter(None, (_line_of(text, path[:n]) for n in range(len(path), 0, -1))), "")


def _line_of(text: str, path: Iterable[str]) -> str:
    """`:LINE` of the table or key `path`, or nothing if it is written in a way this does not see."""
    wanted, table = ".".join(filter(None, path)), ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[([^\]]+)\]", line):
            table = header[1].strip() + "."
            if table == wanted + ".":
                return f":{number}"
        elif (key := re.match(r"\s*([\w.\"-]+)\s*=", line)) and table + key[1].replace('"', "") == wanted:
            return f":{number}"
    return ""
