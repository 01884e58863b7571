"""Captions that people bring with their clips: CSV with columns file_name and caption, or JSONL with these keys."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flgbench.errors import UsageError

COLUMNS = ("file_name", "caption")


def read_captions(path: Path) -> dict[str, str]:
    """File name -> caption as it stands, in the file's order. Raises UsageError, naming the line, for what is wrong."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UsageError(f"--captions {path}: captions are a .csv or a .jsonl file")
    found: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for line, row in _csv_rows(path, file) if path.suffix.lower() == ".csv" else _json_rows(path, file):
                name, caption = (row.get(column) for column in COLUMNS)
                if not isinstance(name, str) or not name:
                    raise UsageError(f"--captions {path}, line {line}: no file_name")
                if name in found:
                    raise UsageError(f"--captions {path}, line {line}: '{name}' has a caption already: give each file one")
                found[name] = caption if isinstance(caption, str) else ""
    except FileNotFoundError:
        raise UsageError(f"--captions {path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--captions {path}: cannot be read ({error})") from None
    if not found:
        raise UsageError(f"--captions {path}: no captions in it")
    return found


def _csv_rows(path: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file)
    if missing := [column for column in COLUMNS if column not in (reader.fieldnames or ())]:
        raise UsageError(f"--captions {path}: no column '{missing[0]}'; it needs the columns {' and '.join(COLUMNS)}")
    for row in reader:
        yield reader.line_num, row


def _json_rows(path: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise UsageError(f'--captions {path}, line {line}: not a JSON object; expected {{"file_name": …, "caption": …}}')
        yield line, row
