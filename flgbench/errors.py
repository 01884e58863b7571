"""The ways in which flgbench says no."""

from __future__ import annotations


class UsageError(Exception):
    """Wrong input. The message is one line: what is wrong, where, and what would be right. The CLI exits with 2."""


class NotDefined(UsageError):
    """A method makes no sense for a family. The message says why; a run with other cells goes on and shows it as skipped."""


class StageFailure(Exception):
    """A stage went wrong in a way that has a name (NaN, static, solid, saturated, drifting)."""

    def __init__(self, word: str, detail: str) -> None:
        super().__init__(word, detail)  # both, so that the exception survives the pickling between processes
        self.word, self.detail = word, detail

    def __str__(self) -> str:
        return f"{self.word}: {self.detail}"
