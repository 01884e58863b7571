"""What is true of every family names none: `methods/` and the engine outside `flgbench/models`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from flgbench.registry import registry

ROOT = Path(__file__).parent.parent
GENERAL = [
    path
    for folder in ("methods", "baselines", "slurm", "flgbench")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "models" not in path.relative_to(ROOT).parts
]


def named(source: str, families: list[str]) -> Iterator[tuple[int, str]]:
    """Lines whose code has a family's name as a text of its own, or imports from a module of `flgbench.models` named so.

    In prose, as in a docstring or an example of a command, a name explains and decides nothing.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in families:
            yield node.lineno, str(node.value)
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules += [alias.name for alias in node.names]
        for part in (part for module in modules for part in module.split(".")):
            if any(part == name or part.startswith(f"{name}_") for name in families):
                yield node.lineno, part


@pytest.mark.parametrize("path", GENERAL, ids=[str(path.relative_to(ROOT)) for path in GENERAL])
def test_no_family_is_named(path: Path) -> None:
    assert list(named(path.read_text(), registry("families").names())) == []


def test_naming_one_is_found() -> None:
    families = registry("families").names()
    wrong = (
        'if model == "wanx":\n    pass',
        "from flgbench.models.hunyuan import Hunyuan",
        "from flgbench.models import wanx",
        "import flgbench.models.hunyuan_family",
        'settings = {"wanx": 1}',
    )
    assert all(list(named(line, families)) for line in wrong)
    assert not list(named('"""Of wanx: `--model wanx`."""\nx = "flgbench run --model wanx"', families))
