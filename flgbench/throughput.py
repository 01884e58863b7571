"""How fast a training at size goes, since its last report: passes and clips a second, MFU, peak memory."""

from __future__ import annotations

import resource
import time

import torch


class Throughput:
    """`flops_per_pass` of one clip and the `peak` FLOP/s of all devices together: MFU where both are known.

    MFU counts the passes that the method asks for; activations computed again are no progress.
    """

    def __init__(self, passes: float, flops_per_pass: float | None, peak: float | None) -> None:
        self.flops_per_pass, self.peak = flops_per_pass, peak
        self._began, self._passes, self._clips = time.monotonic(), passes, 0

    def count(self, clips: int) -> None:
        self._clips += clips

    def report(self, passes: float) -> dict[str, float]:
        """Since the last report; `passes` in all so far. Memory in GB of this process, at its highest since then."""
        now = time.monotonic()
        seconds, done = max(now - self._began, 1e-9), passes - self._passes
        told = {
            "passes_per_second": done / seconds,
            "clips_per_second": self._clips / seconds,
            "peak_memory_gb": _peak_memory() / 1e9,
        }
        if self.flops_per_pass and self.peak:
            told["mfu"] = done * self.flops_per_pass / seconds / self.peak
        self._began, self._passes, self._clips = now, passes, 0
        return told


def _peak_memory() -> int:
    """Bytes: of the GPU since the last call, or of the process on a CPU since its start."""
    if not torch.cuda.is_available():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak
