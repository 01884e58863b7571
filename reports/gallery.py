"""Clips for the page: one WebP image a clip, its 17 frames side by side, small enough to carry inside the HTML."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from reports.aggregates import ordered_cells
from reports.data import Cell, Gallery, RunData
from reports.filmstrip import sentence

FPS = 8
BUDGET = 16 * 2**20  # bytes of base64 for all clips; the whole page stays under 25 MB
MARKS = ("presence", "colour", "shape", "direction", "second_present", "second_colour")


def sprite(video: np.ndarray, lossless: bool = True) -> bytes:
    """WebP of (64, 17 * 64) pixels for one clip (17, 64, 64, 3). Lossy only when the page would grow too large."""
    frames, height, width, _ = video.shape
    strip = np.ascontiguousarray(video.transpose(1, 0, 2, 3)).reshape(height, frames * width, 3)
    out = io.BytesIO()
    # Of a lossless image quality is effort: at 20 a third of the time of 60, and 1 % more bytes.
    effort = {"quality": 20, "method": 2} if lossless else {"quality": 92, "method": 3}
    Image.fromarray(strip).save(out, "WEBP", lossless=lossless, **effort)
    return out.getvalue()


def data_url(image: bytes, kind: str) -> str:
    """The image as a data: URL; `kind` is webp or png."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def columns(run: RunData, gallery: Gallery) -> list[Cell]:
    """Cells with clips in table order, the true clip first."""
    return [cell for cell in ordered_cells(run) if cell.cell in gallery.videos]


def encoded(gallery: Gallery, cells: list[Cell], budget: int = BUDGET) -> list[dict[str, str]]:
    """Per condition: cell -> data URL. Lossless if it fits, else lossy, else only the first conditions."""
    clips: list[dict[str, str]] = []
    for lossless in (True, False):
        clips, size = [], 0
        for i in range(len(gallery.conditions)):
            row = {c.cell: data_url(sprite(gallery.videos[c.cell][i], lossless), "webp") for c in cells}
            size += sum(map(len, row.values()))
            if size > budget:
                break
            clips.append(row)
        if len(clips) == len(gallery.conditions):
            break
    return clips


def payload(run: RunData, colours: dict[str, str]) -> dict[str, Any] | None:
    """What the gallery's script needs; None without a gallery or while no cell has clips."""
    if run.gallery is None or not run.gallery.conditions:
        return None
    cells = columns(run, run.gallery)
    if not cells:
        return None
    clips = encoded(run.gallery, cells)
    conditions = [
        {
            "caption": sentence(str(told.get("caption", "")), 10_000),
            "condition": told.get("condition"),
            "clips": clips[i],
            "marks": {c.cell: marks(run, c.cell, told.get("condition")) for c in cells},
        }
        for i, told in enumerate(run.gallery.conditions[: len(clips)])
    ]
    frames, size = run.gallery.videos[cells[0].cell].shape[1:3]
    return {
        "fps": FPS,
        "frames": frames,
        "size": size,
        "left_out": len(run.gallery.conditions) - len(clips),
        "cells": [{"cell": c.cell, "label": c.label, "kind": c.kind, "colour": colours[c.cell]} for c in cells],
        "conditions": conditions,
    }


def marks(run: RunData, cell: str, condition: object) -> dict[str, bool | float]:
    """How sample 0 of this condition was judged: right or wrong for each factor, and the turn error in px."""
    if not isinstance(condition, int):
        return {}
    table = run.results
    keep = (table["cell"] == cell) & (table["condition"] == condition) & (table["sample"] == 0)
    keep &= table["status"] == "ok"
    values = dict(zip(table.loc[keep, "metric"], table.loc[keep, "value"], strict=True))
    found: dict[str, bool | float] = {name: bool(values[name] == 1) for name in MARKS if name in values}
    if "turn_error" in values and np.isfinite(values["turn_error"]):
        found["turn_error"] = round(float(values["turn_error"]), 2)
    return found
