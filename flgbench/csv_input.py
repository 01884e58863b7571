"""Text files that people hand over, row by row: one clear line for what is wrong with them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from flgbench.errors import UsageError


@contextmanager
def opened(path: Path, option: str) -> Iterator[TextIO]:
    """The text file at `path`. Raises UsageError, naming `option`, while it is open too, where it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield file
    except FileNotFoundError:
        raise UsageError(f"{option} {path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{option} {path}: cannot be read as text ({error})") from None


def csv_rows(file: TextIO, path: Path, option: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str | None]]]:
    """(line number, row) of every row that is not blank. Raises UsageError unless all `columns` are there."""
    reader = csv.DictReader(file)
    if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
        raise UsageError(f"{option} {path}: no column '{missing[0]}'; it needs the columns {' and '.join(columns)}")
    for row in reader:
        yield reader.line_num, row
