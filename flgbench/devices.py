"""What the driver of a GPU tells (NVML) of energy, clocks and temperature."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from flgbench.timing import now

ENERGY_SECONDS = 10.0  # of work, below which the counter's difference says little (evaluation.md 4.3)


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
