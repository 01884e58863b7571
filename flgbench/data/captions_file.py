"""Captions that people bring with their clips: CSV with columns file_name and caption, or JSONL with these keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flgbench.csv_input import csv_rows, opened
from flgbench.errors import UsageError

OPTION, COLUMNS = "--captions", ("file_name", "caption")


def read_captions(path: Path) -> dict[str, str]:
    """File name -> caption as it stands, in the file's order. Raises UsageError, naming the line, for what is wrong."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UsageError(f"{OPTION} {path}: captions are a .csv or a .jsonl file")
    found: dict[str, str] = {}
    with opened(path, OPTION) as file:
        rows = csv_rows(file, path, OPTION, COLUMNS) if path.suffix.lower() == ".csv" else _json_rows(path, file)
        for line, row in rows:
            name, caption = (row.get(column) for column in COLUMNS)
            if not isinstance(name, str) or not name:
                raise UsageError(f"{OPTION} {path}, line {line}: no file_name")
            if name in found:
                raise UsageError(f"{OPTION} {path}, line {line}: '{name}' has a caption already: give each file one")
            found[name] = caption if isinstance(caption, str) else ""
    if not found:
        raise UsageError(f"{OPTION} {path}: no captions in it")
    return found


def _json_rows(path: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise UsageError(f'{OPTION} {path}, line {line}: not a JSON object; expected {{"file_name": …, "caption": …}}')
        yield line, row
