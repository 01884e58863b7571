"""What each metric is called, how it is printed and which way is better: one place for tables, figures and the page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flgbench.metrics.table import ALL_METRICS

Best = Literal["high", "low", "one", "zero", None]  # "zero": unbiased estimates below 0 are as good as 0


@dataclass(frozen=True)
class Shown:
    """How one metric is shown. `scale` multiplies stored values (100 turns a share into percent)."""

    key: str
    title: str
    unit: str
    scale: float
    decimals: int
    best: Best
    meaning: str

    def text(self, value: float | None) -> str:
        """The printed number; an empty text for a missing one."""
        if value is None or math.isnan(value):
            return ""
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        return f"{value * self.scale:.{self.decimals}f}".replace("-", "−")

    def distance(self, value: float) -> float:
        """Smaller is better, computed on the printed digits: equal prints must rank equal."""
        shown = round(value * self.scale, self.decimals) if math.isfinite(value) else value
        if self.best == "high":
            return -shown
        if self.best == "zero":
            return max(shown, 0.0)
        return abs(shown - self.scale) if self.best == "one" else shown

    @property
    def arrow(self) -> str:
        return {"high": "↑", "low": "↓", "zero": "↓", "one": "→1"}.get(self.best or "", "")


def _quality(key: str, title: str, unit: str = "%", scale: float = 100, decimals: int = 1, best: Best = "high") -> Shown:
    meaning = ALL_METRICS[key].description
    return Shown(key, title, unit, scale, decimals, best, meaning)


HEADLINE = "joint"
ACCURACY = (
    _quality("joint", "Joint"),
    _quality("presence", "Presence"),
    _quality("colour", "Colour"),
    _quality("shape", "Shape"),
    _quality("direction", "Direction"),
    _quality("second_present", "Second"),
    _quality("second_colour", "Its colour"),
)
MOTION = (
    _quality("turn_error", "Turn error", "px", 1, 2, "low"),
    _quality("missing_frames", "Missing", best="low"),
    _quality("motion_ratio", "Motion", "ratio", 1, 2, "one"),
    _quality("flicker", "Flicker", "grey levels", 1, 2, "low"),
    _quality("flow_ratio", "Flow", "ratio", 1, 2, None),
    _quality("interpolation_ratio", "Interpolation", "ratio", 1, 2, None),
)
IMAGE = (
    _quality("first_frame_psnr", "First frame", "dB", 1, 1, "high"),
    _quality("first_frame_ssim", "SSIM", "", 1, 3, "high"),
    _quality("sharpness_ratio", "Sharpness", "ratio", 1, 2, "one"),
    _quality("area_drift", "Area drift", "octaves", 1, 3, "low"),
    _quality("colour_drift", "Colour drift", "RGB", 1, 1, "low"),
)
JUDGED = (
    _quality("named_all", "Named"),
    _quality("named_shape", "Shape named"),
    _quality("named_direction", "Direction named"),
    _quality("named_speed", "Speed named"),
    _quality("clip_alignment", "CLIP", "cosine", 1, 3, "high"),
    _quality("first_frame_lpips", "LPIPS", "", 1, 3, "low"),
    _quality("frechet", "Fréchet", "", 1, 3, "low"),
    _quality("kernel", "Kernel", "×10⁻³", 1000, 2, "zero"),
    _quality("teacher_psnr", "Teacher", "dB", 1, 1, None),
)
SOUND = (  # of clips with a sound
    _quality("audio_correlation", "Follows", "", 1, 2, "high"),
    _quality("audio_gain", "Gain", "ratio", 1, 2, "one"),
    _quality("audio_lag", "Lag", "frames", 1, 2, None),
)
DIVERSITY = (
    _quality("turn_diversity", "Turn variety", "ratio", 1, 2, "high"),
    _quality("hidden_tv_turn", "Turn TV", "", 1, 3, "low"),
    _quality("hidden_tv_side", "Side TV", "", 1, 3, "low"),
    _quality("hidden_tv_entry", "Entry TV", "", 1, 3, "low"),
    _quality("vendi", "Vendi", "ratio", 1, 2, "one"),
    _quality("recall", "Recall"),
    _quality("coverage", "Coverage"),
    _quality("precision", "Precision", best=None),
    _quality("mmd", "MMD", "×10⁻³", 1000, 2, "zero"),
    _quality("mmd_p", "MMD p", "", 1, 3, None),
)
SUITE = (  # what can be told of clips without a known truth
    _quality("first_frame_psnr", "First frame", "dB", 1, 1, "high"),
    _quality("first_frame_ssim", "SSIM", "", 1, 3, "high"),
    _quality("first_frame_lpips", "LPIPS", "", 1, 3, "low"),
    _quality("clip_similarity", "CLIP", "cosine", 1, 3, "high"),
    _quality("teacher_psnr", "Teacher", "dB", 1, 1, None),
    _quality("sharpness_kept", "Sharpness kept", "ratio", 1, 2, None),
    _quality("luminance_flicker", "Flicker", "grey levels", 1, 2, None),
    _quality("flow_speed", "Flow", "px a frame", 1, 2, None),
    _quality("interpolation_error", "Interpolation", "grey levels", 1, 2, None),
)
LATENCY = (
    Shown("text_s", "Text", "s", 1, 3, "low", "text encoding, median"),
    Shown("denoise_s", "Denoise", "s", 1, 3, "low", "denoising loop, median"),
    Shown("decode_s", "Decode", "s", 1, 3, "low", "VAE decoding, median"),
    Shown("end_to_end_s", "End to end", "s", 1, 3, "low", "all stages, median"),
    Shown("denoise_batched_cfg_s", "Denoise, batched CFG", "s", 1, 3, "low", "both CFG passes in one batch, median"),
)
MEMORY = Shown("peak_memory_mb", "Memory", "MB", 1, 0, "low", "peak memory of the process while sampling")
BY_KEY = {shown.key: shown for shown in (*SUITE, *ACCURACY, *MOTION, *IMAGE, *JUDGED, *SOUND, *DIVERSITY, *LATENCY, MEMORY)}
LATENCY_KEYS = frozenset(shown.key for shown in LATENCY)


def seconds(value: float) -> str:
    """A duration with three significant digits in the unit that suits it: '812 ms', '1.25 s', '12 min 5 s'."""
    if value < 1:
        return f"{value * 1000:.3g} ms"
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def times(value: float) -> str:
    """A speed-up: '35.7×', '9.81×', '100×'."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}×"
