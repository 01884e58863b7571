"""Drifts and descriptive ratios: closed forms, and the ways in which they are known to be fooled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flgbench.data import shapes
from flgbench.metrics import corruptions
from flgbench.metrics.descriptive import against_truth
from flgbench.metrics.truth import measure

FACTORS = shapes.draw_factors("validation", range(24))
REAL = shapes.render(FACTORS)


def test_ratios_of_the_truth_are_one() -> None:
    found = against_truth(REAL, REAL)
    for name in ("first_frame_ssim", "interpolation_ratio", "flow_ratio"):
        np.testing.assert_allclose(found[name], 1, atol=1e-3)


def test_flow_of_a_texture_that_moves_two_pixels_a_frame() -> None:
    """Every pixel moves by (2, 0): the fastest 5 % do so, against a truth that moves by (1, 0), half as much."""
    texture = (
        torch.nn.functional.interpolate(
            torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(0)), (64, 128), mode="bicubic"
        )
        .clamp(0, 1)[0]
        .permute(1, 2, 0)
        .mul(255)
        .to(torch.uint8)
    )
    moving = [torch.stack([texture[:, s * t : s * t + 64] for t in range(17)])[None] for s in (1, 2)]
    assert against_truth(moving[1], moving[0])["flow_ratio"][0] == pytest.approx(2, rel=0.15)


def test_interpolation_error_closed_form() -> None:
    """One pixel that flashes in one frame: |1| there and |1/2| in the two frames beside it."""
    flash, twice = (torch.zeros(1, 5, 64, 64, 3, dtype=torch.uint8) for _ in range(2))
    flash[0, 2, 0, 0], twice[0, 2, 0, 0] = 50, 100
    assert against_truth(twice, flash)["interpolation_ratio"][0] == pytest.approx(2)


@pytest.mark.parametrize(
    ("damage", "measure_name", "worse"),
    [
        (corruptions.vanishing, "missing_frames", lambda v: v.mean() == pytest.approx(3 / 17, abs=0.02)),
        (corruptions.fade, "colour_drift", lambda v: np.nanmean(v) > 40),
        (corruptions.wrong_first_frame, "first_frame_ssim", lambda v: v.mean() < 0.9),
        (corruptions.frozen, "flow_ratio", lambda v: v.mean() < 0.2),
        (corruptions.jitter, "interpolation_ratio", lambda v: v.mean() > 1.3),
        # How they are fooled.
        (corruptions.jitter, "flow_ratio", lambda v: v.mean() > 1.05),
        (corruptions.blur, "interpolation_ratio", lambda v: v.mean() < 0.8),
    ],
)
def test_known_damage(damage: corruptions.Damage, measure_name: str, worse: object) -> None:
    value = measure(damage(REAL, FACTORS), FACTORS)[measure_name]
    assert worse(value), value.mean()  # type: ignore[operator]


def test_an_object_that_grows_drifts_in_area() -> None:
    """From the smallest to the middle radius in the second half."""
    small = type(FACTORS)(**{**vars(FACTORS), "size": np.zeros_like(FACTORS.size)})
    large = type(FACTORS)(**{**vars(FACTORS), "size": np.ones_like(FACTORS.size)})
    video = torch.cat([shapes.render(small)[:, :9], shapes.render(large)[:, 9:]], dim=1)
    found = measure(video, small)["area_drift"]
    due = 2 * np.log2(shapes.RADII[1] / shapes.RADII[0])
    seen = found[np.isfinite(found)]
    assert len(seen) > 12 and np.median(seen) == pytest.approx(due, abs=0.15)
    assert np.nanmax(measure(shapes.render(small), small)["area_drift"]) < 0.1
