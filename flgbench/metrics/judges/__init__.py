"""Networks that judge clips: a factor classifier and a tiny CLIP that ship with the package, LPIPS where its trunk is."""

from __future__ import annotations

from pathlib import Path

SHIPPED = ("classifier", "clip")
WEIGHTS = Path(__file__).parent / "weights"


def fingerprint() -> dict[str, str]:
    """What decides the learned measures: hashes of the shipped weights, and whether LPIPS has its trunk here.

    Raises UsageError where weights are damaged.
    """
    from flgbench.metrics.judges.lpips_first_frame import why_not
    from flgbench.shipped import HASHES, verify
    from flgbench.store import sha256

    for name in SHIPPED:
        verify(WEIGHTS / name)
    hashes = {name: sha256(WEIGHTS / name / HASHES)[:12] for name in SHIPPED}
    return hashes | {"lpips": "absent" if why_not() else "present"}
