"""Flow matching where everything is known: algebra by property tests, and data that is Gaussian.

Data x0 ~ N(m, s^2), path x_t = (1 - t) x0 + t eps. Then x_t ~ N((1 - t) m, V) with V(t) = (1 - t)^2 s^2 + t^2, and by
linear regression on x_t

    E[x0  | x_t] = m + (1 - t) s^2 / V (x_t - (1 - t) m)
    E[eps | x_t] =              t / V (x_t - (1 - t) m)
    v(x, t) = E[eps - x0 | x_t = x] = -m + (t - (1 - t) s^2) / V (x - (1 - t) m).

Since dV/dt = 2 (t - (1 - t) s^2), the path x(t) = (1 - t) m + sqrt(V(t)) z solves dx/dt = v: noise z at t = 1 ends as
m + s z at t = 0, the map that an exact solver must reach.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flgbench import flow
from flgbench.sampling import euler, renoise

unit = st.floats(0, 1)
amounts = st.floats(0.2, 12)
seeds = st.integers(0, 10**6)
MEAN, STD = 1.5, 0.4


def variance(t: torch.Tensor, s: float = STD) -> torch.Tensor:
    return (1 - t) ** 2 * s**2 + t**2


def posterior_mean(x: torch.Tensor, t: torch.Tensor, m: float = MEAN, s: float = STD) -> torch.Tensor:
    return m + (1 - t) * s**2 / variance(t, s) * (x - (1 - t) * m)


def gaussian_velocity(m: float = MEAN, s: float = STD) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return -m + (t - (1 - t) * s**2) / variance(t, s) * (x - (1 - t) * m)

    return velocity


def clips(seed: int, count: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, 2, 4, 4, generator=generator) for _ in range(count)]


@given(seeds, st.lists(unit, min_size=3, max_size=3))
def test_clean_estimate_of_the_true_velocity_is_the_clip(seed: int, times: list[float]) -> None:
    x0, noise = clips(seed)
    t = torch.tensor(times)  # one time a clip
    x_t = flow.interpolate(x0, noise, t)
    torch.testing.assert_close(flow.clean_estimate(x_t, t, flow.velocity_target(x0, noise)), x0, rtol=0, atol=1e-5)


@given(seeds, unit)
def test_path_ends_and_derivative(seed: int, t: float) -> None:
    """t = 0 is the clip, t = 1 the noise, and the slope is the velocity target everywhere."""
    x0, noise = clips(seed)
    assert torch.equal(flow.interpolate(x0, noise, 0.0), x0) and torch.equal(flow.interpolate(x0, noise, 1.0), noise)
    slope = flow.interpolate(x0, noise, 1.0) - flow.interpolate(x0, noise, t)
    torch.testing.assert_close(slope, (1 - t) * flow.velocity_target(x0, noise), rtol=0, atol=1e-5)


@given(unit, amounts)
def test_unshift_inverts_shift(u: float, amount: float) -> None:
    t = flow.shift(torch.tensor(u, dtype=torch.float64), amount)
    assert 0 <= t <= 1 + 1e-12  # rounding may step over 1
    assert flow.unshift(t, amount).item() == pytest.approx(u, abs=1e-12)


@given(st.integers(1, 60), amounts)
def test_euler_times_fall_from_one_to_zero(steps: int, amount: float) -> None:
    times = flow.euler_times(steps, amount)
    assert len(times) == steps + 1 and times[0].item() == pytest.approx(1, abs=1e-6) and times[-1] == 0
    assert (times.diff() < 0).all()


def test_few_step_times_by_hand() -> None:
    torch.testing.assert_close(flow.euler_times(4, 3.0), torch.tensor([1, 0.9, 0.75, 0.5, 0]))


@given(seeds, st.floats(0, 10))
def test_guidance(seed: int, w: float) -> None:
    v, v0 = clips(seed)
    torch.testing.assert_close(flow.guide(v, v0, 1.0), v, rtol=0, atol=1e-6)
    torch.testing.assert_close(flow.guide(v, v0, 0.0), v0)
    torch.testing.assert_close(flow.guide(v, v, w), v)
    per_clip = flow.guide(v, v0, torch.tensor([0.0, 1.0, w]))  # methods draw one scale a clip
    torch.testing.assert_close(per_clip[2], flow.guide(v, v0, w)[2])
    torch.testing.assert_close(per_clip[1], v[1], rtol=0, atol=1e-6)


def test_half_precision_does_not_cancel() -> None:
    """Near t = 1 a bf16 difference would lose the clip; the estimate is computed in fp32."""
    x, v = torch.full((1, 1), 1.0, dtype=torch.bfloat16), torch.full((1, 1), 1.0, dtype=torch.bfloat16)
    assert flow.clean_estimate(x, 0.999, v).item() == pytest.approx(0.001, abs=1e-6)


def test_elbo_weight_turns_velocity_errors_into_clean_errors() -> None:
    """With x0 - X0 = t (v' - v), weight (1-t)/t on the velocity error is (1-t)/t^3 on the x0 error."""
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(flow.elbo_weight(t) / t**2, (1 - t) / t**3)


@given(st.floats(0.01, 1), st.floats(-3, 3))
def test_tweedie_is_the_posterior_mean(t: float, x: float) -> None:
    point, time = torch.tensor([[x]]), torch.tensor([t])
    estimate = flow.clean_estimate(point, time, gaussian_velocity()(point, time))
    torch.testing.assert_close(estimate, posterior_mean(point, time), rtol=1e-4, atol=1e-4)


def test_velocity_is_the_regression_that_training_targets() -> None:
    """The closed form beats any shifted or scaled version of itself on sampled pairs: it is the least-squares answer."""
    generator = torch.Generator().manual_seed(0)
    x0 = MEAN + STD * torch.randn(20_000, 1, generator=generator)
    noise = torch.randn(20_000, 1, generator=generator)
    t = torch.tensor(0.6)
    x_t = flow.interpolate(x0, noise, t)
    residual = flow.velocity_target(x0, noise) - gaussian_velocity()(x_t, t)
    spread = residual.std() / 20_000**0.5
    assert residual.mean().abs() < 4 * spread
    assert (residual * (x_t - x_t.mean())).mean().abs() < 4 * spread * x_t.std()


@pytest.mark.parametrize("amount", [1.0, 3.0])
def test_euler_converges_with_order_one(amount: float) -> None:
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    errors = [
        (euler(gaussian_velocity(), z, flow.euler_times(n, amount).double()) - (MEAN + STD * z)).abs().max().item()
        for n in (32, 64, 128, 256)
    ]
    assert errors[-1] < 0.02
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert 1.7 <= coarse / fine <= 2.3, errors


@given(st.floats(0, 8), st.floats(0, 1))
def test_guidance_of_two_gaussians_extrapolates_the_mean(w: float, t: float) -> None:
    """Equal variances make v linear in the mean, so CFG is the velocity of N(m0 + w (m - m0), s^2)."""
    x, time = torch.linspace(-3, 3, 7, dtype=torch.float64), torch.tensor(t, dtype=torch.float64)
    guided = flow.guide(gaussian_velocity(m=2.0)(x, time), gaussian_velocity(m=-1.0)(x, time), w)
    torch.testing.assert_close(guided, gaussian_velocity(m=-1.0 + 3.0 * w)(x, time))


def test_one_renoising_step_returns_the_mean() -> None:
    """Noise tells nothing about the clip, so the posterior mean at t = 1 is the mean: one step has no spread at all."""
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    out = renoise(gaussian_velocity(), x, flow.euler_times(1, 3.0), torch.zeros_like)  # type: ignore[arg-type]
    torch.testing.assert_close(out, torch.full_like(x, MEAN))


def test_renoising_loses_spread_by_the_known_amount() -> None:
    """With gain k(t) = (1-t) s^2 / V the spread obeys sigma'^2 = k^2 ((1-s)^2 sigma^2 + s^2): few steps are too sharp."""
    times = flow.euler_times(4, 3.0).double()
    generator = torch.Generator().manual_seed(0)
    count = 40_000

    def noise(step: int) -> torch.Tensor:
        return torch.randn(count, dtype=torch.float64, generator=generator)

    out = renoise(gaussian_velocity(), noise(0), times, noise)
    spread = 0.0  # of the clean estimate after the first step, the bare mean
    for t in times[1:-1]:
        gain = (1 - t) * STD**2 / variance(t)
        spread = (gain**2 * ((1 - t) ** 2 * spread + t**2)).item()
    assert out.mean().item() == pytest.approx(MEAN, abs=4 * (spread / count) ** 0.5)
    assert out.var().item() == pytest.approx(spread, rel=0.04)
    assert spread < 0.8 * STD**2
