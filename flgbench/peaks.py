"""What GPUs reach at best, by data sheet. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
    Peak("B200", {"bf16": 2250.0}, "NVIDIA HGX B200 data sheet, an eighth of eight: 4,500 TFLOPS with sparsity", ("GB",)),
    Peak("A100", {"bf16": 312.0, "fp32": 19.5}, "NVIDIA A100 data sheet: 312 TFLOPS dense", ("MIG",)),
)


def peak(device: str, dtype: str) -> tuple[float | None, str]:
    """FLOP/s of a device by name and dtype ('bf16', 'fp32') with their source; or None with the reason."""
    for known in PEAKS:
        if known.name in device and not any(word in device for word in known.not_in):
            if dtype not in known.tflops:
                return None, f"no {dtype} figure in the table for '{device}'"
            return known.tflops[dtype] * 1e12, known.source
    return None, f"no data sheet in the table for '{device}'"
