"""Facts of the machine and the software: recorded with every run, and the key of latency."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Training allocates and frees the same megabytes in every pass. By default glibc gives them back to the system each time
# and is handed zeroed pages again; kept, and in huge pages, they make a training pass 9 to 14 % shorter (Zen 4).
MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=4294967296:glibc.malloc.mmap_threshold=4294967296"
PACKAGES = ("flgbench", "torch", "diffusers", "transformers", "numpy", "safetensors")


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> None:
    """Let processes that start from now on keep freed memory; no effect where the C library is another."""
    os.environ.setdefault("GLIBC_TUNABLES", MALLOC)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def free_memory() -> int:
    """Bytes that new work may take without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


@cache
def gpu() -> str:
    """Name of the first GPU, or "none". Imports torch."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"


def gpus() -> list[str]:
    """Names by which CUDA_VISIBLE_DEVICES calls the GPUs that this process may use. Imports torch."""
    import torch

    if not torch.cuda.is_available():
        return []
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return told.split(",") if told else [str(i) for i in range(torch.cuda.device_count())]


def commit() -> str:
    """Commit of the source tree this package runs from, or "not a checkout"."""
    folder = Path(__file__).parent.parent
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return "not a checkout"
    return found.stdout.strip() if found.returncode == 0 else "not a checkout"


def hardware() -> dict[str, str | int]:
    """What latency depends on besides the cell: timings with different values here are never compared."""
    return {
        "processor": processor(),
        "cores": cores(),
        "gpu": gpu(),
        "dtype": "float32",
        "torch": package_version("torch"),
        "diffusers": package_version("diffusers"),
    }


def facts() -> dict[str, str]:
    """Everything worth knowing about where a run happened, as flat text."""
    machine = {"cpu": processor(), "threads": str(cores()), "memory": f"{memory_gb()} GiB", "gpu": gpu()}
    software = {"python": platform.python_version(), "os": platform.platform()}
    return machine | software | {name: package_version(name) for name in PACKAGES} | {"commit": commit()}
