"""Read what VBench wrote: NAME_eval_results.json, {dimension: [score, [{"video_path": …, "video_results": …}, …]]}."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from flgbench.errors import UsageError
from flgbench.vbench.scoring import DIMENSIONS, intervals

TOLERANCE = 1e-3  # between a dimension's score and the mean of its videos
Scores = dict[str, dict[str, list[float]]]


def read_scores(paths: list[Path]) -> tuple[Scores, list[str]]:
    """Dimension -> image -> values of its videos in [0, 1], and remarks. Several files may share the dimensions.

    Raises UsageError for a file that is not VBench's, an unknown or repeated dimension, or a value that is no number.
    """
    scores: Scores = {}
    remarks: list[str] = []
    for path in paths:
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: not a readable JSON file ({error})") from None
        if not isinstance(content, dict) or not content:
            raise UsageError(f"{path}: expected {{dimension: [score, videos]}}, as VBench's *_eval_results.json has it")
        for name, entry in content.items():
            if name not in DIMENSIONS:
                raise UsageError(f"{path}: '{name}' is no dimension of VBench-I2V; known: {', '.join(DIMENSIONS)}")
            if name in scores:
                raise UsageError(f"{path}: dimension '{name}' was in an earlier file already")
            scores[name], remark = _dimension(f"{path}: {name}", entry, DIMENSIONS[name].per_video)
            remarks += [remark] if remark else []
    return scores, remarks


def _dimension(where: str, entry: Any, divisor: float) -> tuple[dict[str, list[float]], str]:
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], list) and entry[1]):
        raise UsageError(f"{where}: expected [score, list of videos]; without the list there are no intervals")
    by_image: dict[str, list[float]] = {}
    for video in entry[1]:
        if not isinstance(video, Mapping) or "video_path" not in video:
            raise UsageError(f"{where}: a video has no 'video_path'")
        value = _number(f"{where}: {video['video_path']}", video.get("video_results")) / divisor
        by_image.setdefault(image_of(str(video["video_path"])), []).append(value)
    score = _number(where, entry[0])
    mean = sum(map(sum, by_image.values())) / sum(map(len, by_image.values()))
    told = f"{where}: the score {score:.4f} is not the mean of its videos, {mean:.4f}, which is used"
    return by_image, told if abs(mean - score) > TOLERANCE else ""


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    raise UsageError(f"{where}: expected a number, got {value!r}")


def image_of(path: str) -> str:
    """The image that a video was made from: its name without '-INDEX' and extension."""
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return re.sub(r"(-\d+)?\.\w+$", "", name)


def tabulate(scores: Scores) -> pd.DataFrame:
    """One row a dimension, then the totals if all nine are there: score, interval, normalised, weight, images, videos."""
    found = intervals(scores)
    rows = []
    for name, interval in found.items():
        dimension = DIMENSIONS.get(name)
        rows.append(
            {
                "dimension": name,
                "score": interval.value,
                "low": interval.low,
                "high": interval.high,
                "normalised": dimension.normalised(interval.value) if dimension else None,
                "part": dimension.part if dimension else "",
                "weight": dimension.weight if dimension else None,
                "images": interval.n,
                "videos": sum(map(len, scores[name].values())) if dimension else None,
            }
        )
    return pd.DataFrame(rows)
