"""Known damage to real clips, to see which measure notices it (evaluation.md 5.5 and three of our own).

Every function takes N real clips (N, 17, 64, 64, 3) uint8 with their factors and returns clips of the same shape. All
are deterministic: what is random is drawn from a generator with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torchvision.transforms.functional import gaussian_blur

from flgbench.data import shapes
from flgbench.data.sound import SoundingFactors

Damage = Callable[[torch.Tensor, shapes.Factors], torch.Tensor]


@dataclass(frozen=True)
class Corruption:
    """`designated`: the measure that has to notice it."""

    name: str
    damage: Damage
    designated: str


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _as_video(values: torch.Tensor) -> torch.Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def blur(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """Gaussian, 1.5 pixels."""
    planes = video.permute(0, 1, 4, 2, 3).flatten(0, 1).float()
    return _as_video(gaussian_blur(planes, [11, 11], [1.5, 1.5]).unflatten(0, video.shape[:2]).permute(0, 1, 3, 4, 2))


def temporal_blur(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """Every frame the mean of itself and its neighbours."""
    frames = torch.cat([video[:, :1], video, video[:, -1:]], dim=1).float()
    return _as_video((frames[:, :-2] + frames[:, 1:-1] + frames[:, 2:]) / 3)


def frozen(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """The first frame, repeated."""
    return video[:, :1].expand_as(video).clone()


def half_speed(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """Every frame twice."""
    return video[:, torch.arange(video.shape[1]) // 2]


def flicker(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """The brightness of every frame off by up to 8 %."""
    gain = 1 + 0.08 * (2 * torch.rand(video.shape[:2], generator=_generator()) - 1)
    return _as_video(video * gain[:, :, None, None, None])


def jitter(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """Every frame moved by -1, 0 or 1 pixel in x and in y."""
    steps = torch.randint(-1, 2, (*video.shape[:2], 2), generator=_generator()).tolist()
    rolled = [
        [f.roll(s, (0, 1)) for f, s in zip(clip, moves, strict=True)] for clip, moves in zip(video, steps, strict=True)
    ]
    return torch.stack([torch.stack(frames) for frames in rolled])


def backwards(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """Played from the end."""
    return video.flip(1)


def fade(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """Towards black, to a third of the brightness in the last frame."""
    gain = torch.linspace(1, 1 / 3, video.shape[1])
    return _as_video(video * gain[:, None, None, None])


def eight_outputs(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """Whatever was asked for, one of the same eight clips."""
    return video[torch.arange(len(video)) % 8]


def one_a_condition(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """Whatever the seed, the same clip: of all clips that begin alike the first one."""
    begin = np.concatenate([factors.start, factors.look], axis=1)
    _, first, condition = np.unique(begin, axis=0, return_index=True, return_inverse=True)
    return video[torch.from_numpy(first[condition.reshape(-1)])]


def shuffle_behind_first(clip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The frames (T, ...) of one clip in random order, but for the first."""
    return torch.cat([clip[:1], clip[1 + torch.randperm(len(clip) - 1, generator=generator)]])


def shuffled(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """All frames but the first in random order."""
    generator = _generator()
    return torch.stack([shuffle_behind_first(clip, generator) for clip in video])


def other_colour(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """The main object in the palette's next colour but two."""
    return shapes.render(replace(factors, colour=(factors.colour + 3) % len(shapes.PALETTE)))


def vanishing(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """Nothing but the background in frames 6 to 8."""
    gone = video.clone()
    gone[:, 6:9] = _as_video(shapes.backgrounds(factors))[:, None]
    return gone


def wrong_first_frame(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """The first frame of another clip."""
    wrong = video.clone()
    wrong[:, 0] = video[:, 0].roll(1, 0)
    return wrong


def other_sound(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """The size of the main object follows another clip's sound."""
    assert isinstance(factors, SoundingFactors)
    return shapes.render(replace(factors, sound=np.roll(factors.sound, 1, axis=0)))


def unheard(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """The main object keeps its size, as in silence."""
    silent = {field.name: getattr(factors, field.name) for field in fields(shapes.Factors)}
    return shapes.render(shapes.Factors(**silent))


def late(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """Two frames late."""
    return video[:, (torch.arange(video.shape[1]) - 2).clamp(min=0)]


def half_as_strong(video: torch.Tensor, factors: shapes.Factors) -> torch.Tensor:
    """Every frame the mean of itself and of what it is in silence, as near as pixels can be."""
    return _as_video((video.float() + unheard(video, factors).float()) / 2)


# Of clips with a sound.
SOUND_CORRUPTIONS = (
    Corruption("another clip's sound", other_sound, "audio_correlation"),
    Corruption("sound not heard", unheard, "audio_correlation"),
    Corruption("frozen", frozen, "audio_correlation"),
    Corruption("2 frames late", late, "audio_lag"),
    Corruption("half as strong", half_as_strong, "audio_gain"),
)

CORRUPTIONS = (
    Corruption("blur", blur, "sharpness_ratio"),
    Corruption("temporal blur", temporal_blur, "sharpness_ratio"),
    Corruption("frozen", frozen, "motion_ratio"),
    Corruption("half speed", half_speed, "motion_ratio"),
    Corruption("flicker 8 %", flicker, "flicker"),
    Corruption("jitter 1 px", jitter, "turn_error"),
    Corruption("reversed", backwards, "direction"),
    Corruption("fade", fade, "colour"),
    Corruption("eight outputs only", eight_outputs, "mmd"),
    Corruption("one clip a condition", one_a_condition, "turn_diversity"),
    Corruption("shuffled frames", shuffled, "motion_ratio"),
    Corruption("other colour", other_colour, "colour"),
    Corruption("vanishes for 3 frames", vanishing, "presence"),
    Corruption("wrong first frame", wrong_first_frame, "first_frame_psnr"),
)


def seeds_of(conditions: int, seeds: int = 8) -> tuple[shapes.Factors, np.ndarray]:
    """Factors of `conditions` x `seeds` real clips, and each one's condition: the turn is drawn anew for every seed."""
    own = shapes.draw_factors("validation", np.arange(conditions * seeds))
    condition = np.repeat(np.arange(conditions), seeds)
    first = {name: values[condition * seeds] for name, values in vars(own).items()}
    return replace(own, **first | {"turn": own.turn}), condition
