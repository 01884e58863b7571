"""What is known of a GPU: its peak by data sheet, and what its driver tells (NVML) of energy, clocks and temperature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from flgbench.timing import now

ENERGY_SECONDS = 10.0  # of work, below which the counter's difference says little (evaluation.md 4.3)


@dataclass(frozen=True)
class Peak:
    """Dense TFLOP/s by dtype of GPUs whose names contain `name`; `not_in` are words of other variants."""

    name: str
    tflops: Mapping[str, float]
    source: str
    not_in: tuple[str, ...] = ()


# Tensor-core figures of the data sheets are "with sparsity": half of them is dense. fp32 is without TF32, torch's default.
PEAKS = (
    Peak("H200 NVL", {"bf16": 835.5, "fp32": 60.0}, "NVIDIA H200 data sheet, H200 NVL: 1,671 TFLOPS with sparsity"),
    Peak("H200", {"bf16": 989.5, "fp32": 67.0}, "NVIDIA H200 data sheet, H200 SXM: 1,979 TFLOPS with sparsity", ("GH",)),
    Peak("H100 NVL", {"bf16": 835.5, "fp32": 60.0}, "NVIDIA H100 data sheet, H100 NVL: 1,671 TFLOPS with sparsity"),
    Peak("H100 PCIe", {"bf16": 756.5, "fp32": 51.0}, "NVIDIA H100 data sheet, H100 PCIe: 1,513 TFLOPS with sparsity"),
    Peak("H100 80GB HBM3", {"bf16": 989.5, "fp32": 67.0}, "NVIDIA H100 data sheet, H100 SXM: 1,979 TFLOPS with sparsity"),
    Peak("A100", {"bf16": 312.0, "fp32": 19.5}, "NVIDIA A100 data sheet: 312 TFLOPS dense", ("MIG",)),
)


def peak(device: str, dtype: str) -> tuple[float | None, str]:
    """FLOP/s of a device by name and dtype ('bf16', 'fp32') with their source; or None with the reason."""
    for known in PEAKS:
        if known.name in device and not any(word in device for word in known.not_in):
            return known.tflops[dtype] * 1e12, known.source
    return None, f"no data sheet in the table for '{device}'"


class Driver:
    """NVML of one CUDA device, or the reason why there is none."""

    def __init__(self, device: torch.device) -> None:
        self.handle, self.reason = None, ""
        if device.type != "cuda":
            self.reason = "a CPU has no counter that can be read without privileges"
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            self.nvml = pynvml
            self.handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            self.joules()
        except ImportError:
            self.handle, self.reason = None, "nvidia-ml-py is not installed: pip install 'flgbench[energy]'"
        except pynvml.NVMLError as error:
            self.handle, self.reason = None, f"NVML: {error}"

    def joules(self) -> float:
        """The board's total energy since the driver was loaded. Needs `handle`."""
        return self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle) / 1000

    def state(self) -> dict[str, Any]:
        """Clocks, temperature, power and why clocks are held back; what the driver does not tell is left out."""
        if self.handle is None:
            return {"reason": self.reason}
        nvml, found = self.nvml, {}
        asked = {
            "driver": lambda: str(nvml.nvmlSystemGetDriverVersion()),
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(self.handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(self.handle, nvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(self.handle, nvml.NVML_TEMPERATURE_GPU),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(self.handle) / 1000,
            "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(self.handle) / 1000,
            "throttle_reasons": lambda: hex(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle)),
        }
        for name, ask in asked.items():
            try:
                found[name] = ask()
            except nvml.NVMLError:
                continue
        return found


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that a large matrix product of this dtype reaches on this device now, for estimates."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    a @ a
    began = now()
    for _ in range(3):
        a @ a
    return 3 * 2 * size**3 / (now() - began)
