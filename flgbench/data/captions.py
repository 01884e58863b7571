"""Captions of procedural clips: a small grammar with synonyms and varied word order, and its word list."""

from __future__ import annotations

from collections.abc import Sequence

from flgbench.data import shapes

SYNONYMS = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "small": ("small", "little"),
    "medium": ("medium", "mid-sized"),
    "large": ("large", "big"),
    "slow": ("slowly", "gently"),
    "steady": ("steadily", "evenly"),
    "fast": ("fast", "quickly"),
    "right": ("to the right", "rightwards"),
    "left": ("to the left", "leftwards"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
    "lower right": ("to the lower right", "down and right"),
    "lower left": ("to the lower left", "down and left"),
    "upper left": ("to the upper left", "up and left"),
    "upper right": ("to the upper right", "up and right"),
    "plain": ("a plain background", "a flat backdrop"),
    "gradient": ("a gradient background", "a shaded backdrop"),
    "texture": ("a textured background", "a wavy backdrop"),
}
_VERBS = ("moves", "glides", "travels", "drifts")
_TEMPLATES = (
    "a {size} {colour} {shape} {verb} {speed} {direction} over {background}",
    "the {colour} {shape} , {size} , {verb} {direction} {speed} on {background}",
    "over {background} a {size} {colour} {shape} {verb} {direction} {speed}",
    "{speed} a {size} {colour} {shape} {verb} {direction} over {background}",
    "on {background} the {size} {shape} in {colour} {verb} {speed} {direction}",
)
NEGATIVE_CAPTION = ""


def captions_of(factors: shapes.Factors) -> list[str]:
    """One English caption a clip; it names every factor that is not hidden."""
    names = {
        "shape": shapes.SHAPES,
        "size": shapes.SIZES,
        "speed": shapes.SPEEDS,
        "direction": shapes.DIRECTIONS,
        "background": shapes.BACKGROUNDS,
    }
    lines = []
    for n in range(len(factors)):
        draws = iter(factors.words[n])

        def choose(options: Sequence[str], draws=draws) -> str:
            return options[int(next(draws) * len(options))]

        words = {key: choose(SYNONYMS[table[getattr(factors, key)[n]]]) for key, table in names.items()}
        template = choose(_TEMPLATES)
        lines.append(template.format(colour=shapes.COLOURS[factors.colour[n]], verb=choose(_VERBS), **words))
    return lines


def vocabulary() -> list[str]:
    """Every word a caption can hold, sorted: the tokenizer's word list."""
    text = " ".join((*_TEMPLATES, *_VERBS, *shapes.COLOURS, *(w for s in SYNONYMS.values() for w in s)))
    return sorted({word for word in text.split() if not word.startswith("{")})
