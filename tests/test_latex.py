"""LaTeX of every table: structure without an installation of TeX, and a real pdflatex where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from report_runs import HOSTILE, make_run

from reports import comparisons, main_table, merged, paper_numbers, paper_tables, trainings
from reports.compare import tables as compared
from reports.data import RunData, load_run
from reports.merge import merge
from reports.tables import Table, tex, write

SPECIAL = r"A&B_50% #1 {x} $y$ ^~\ <|>"


def run_folder(folder: Path, label: str) -> Path:
    """A run with a method trained twice, so that every kind of table has rows, and labels of the given text."""
    make_run(folder, conditions=12, pairs=6, clips=1)
    cells = json.loads((folder / "cells.json").read_text())
    for c in cells:
        c["card"] = {"conditions_sha256": "0123456789abcdef"}
        c["label"] = f"{label} {c['cell']}" if label else c["label"]
        c["reason"] = label if c["status"] == "failed" and label else c["reason"]
    cells.append(next(c for c in cells if c["cell"] == "fastlightgen") | {"cell": "fastlightgen-seed1", "repeat": 1})
    (folder / "cells.json").write_text(json.dumps(cells))
    return folder


def every_table(run: RunData) -> list[tuple[str, list[Table]]]:
    """(file name, tables) of everything that is written as LaTeX."""
    return [
        ("main", main_table.tables(run)),
        ("differences", [comparisons.table(run)]),
        ("trainings", [trainings.table(run)]),
        ("compare", compared(run, run)),
        *((table.name, [table]) for table in paper_tables.tables(paper_numbers.beside(run))),
        *((table.name, [table]) for table in merged.tables(merge([run, run]))),
    ]


@pytest.fixture(scope="module", params=["plain", "special", "hostile"])
def sources(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp(request.param)
    label = {"plain": "", "special": SPECIAL, "hostile": HOSTILE}[request.param]
    run = load_run(run_folder(folder / "run", label))
    for name, tables in every_table(run):
        write(tables, folder / "tables", name)
    found = sorted((folder / "tables").glob("*.tex"))
    assert len(found) == 6 + 1 + 1 + len(compared(run, run)) + 8 + 2
    return found


def without_escapes(source: str) -> str:
    """The source without comments and without characters that a backslash takes the power from."""
    source = re.sub(r"(?<!\\)%.*", "", source)
    return re.sub(r"\\\\(?:\[-?\d+pt\])?", "\n@ROW@", source).replace("\\&", "").replace("\\{", "").replace("\\}", "")


def faults(source: str) -> list[str]:
    """What is wrong with a LaTeX table: braces, environments, columns of a row, characters with power."""
    plain = without_escapes(source)
    found = []
    depth = 0
    for character in plain:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            found.append("a brace is closed that was not opened")
            break
    if depth > 0:
        found.append(f"{depth} braces are left open")
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", plain):
        if kind == "begin":
            opened.append(name)
        elif not opened or opened.pop() != name:
            found.append(f"end of {name} closes something else")
    found += [f"{name} is left open" for name in opened]
    spec = re.search(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", source)
    if spec is None:
        return [*found, "no column specification"]
    body = plain.split("\\begin{tabular}")[1].split("\\end{tabular}")[0]
    rows = body.split("@ROW@")[:-1]
    for row in rows:
        if (count := row.count("&") + 1) != len(spec.group(1)):
            found.append(f"{count} columns for {len(spec.group(1))}: {row.strip()[:60]}")
    if len(rows) < 3:
        found.append("no rows")
    if re.search(r"(?<!\\)[#^~_]", plain):
        found.append("a special character has kept its power")
    if plain.replace("\\$", "").count("$") % 2:
        found.append("mathematics is left open")
    return found


def test_every_table_is_well_formed(sources: list[Path]) -> None:
    for path in sources:
        source = path.read_text()
        assert faults(source) == [], path.name
        assert source.count(r"\toprule") == source.count(r"\midrule") == source.count(r"\bottomrule") == 1
        assert r"\input{" not in source


def test_the_check_notices_faults(sources: list[Path]) -> None:
    good = sources[0].read_text()
    row = next(line for line in good.splitlines() if line.endswith(r"\\") and line.startswith("{"))
    label = row[: row.index(" & ")]
    broken = {
        "open brace": good.replace(label, "{" + label, 1),
        "closed brace": good.replace(label, label + "}", 1),
        "column too many": good.replace(row, "x & " + row, 1),
        "column too few": good.replace(row, row.partition(" & ")[2], 1),
        "raw ampersand": good.replace(label, label + " & ", 1),
        "raw underscore": good.replace(label, "a_b", 1),
        "open mathematics": good.replace(label, "$", 1),
        "environment": good.replace(r"\end{tabular}", "", 1) + r"\end{tabular}",
    }
    for name, source in broken.items():
        assert source != good and faults(source), name


def test_labels_are_unlike(sources: list[Path]) -> None:
    """All tables of a run and of a comparison may stand in one paper."""
    labels = [label for path in sources for label in re.findall(r"\\label\{(.*?)\}", path.read_text())]
    assert len(set(labels)) == len(labels) == len(sources), labels


@pytest.mark.parametrize(
    "text", [SPECIAL, HOSTILE, "café – ½ ×3 ≥ 1 … 漢字", "\\\\[2pt] & \\end{tabular}", "{{{", "}}}", "a%b"]
)
def test_text_has_no_power(text: str) -> None:
    written = tex(text)
    assert all(" " <= c <= "~" or "À" <= c <= "ÿ" for c in written)
    row = rf"\begin{{tabular}}{{@{{}}l@{{}}}}{written} \\ {written} \\ {written} \\ \end{{tabular}}"
    assert faults(row) == []


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_all_tables_compile_in_one_document(sources: list[Path], tmp_path: Path) -> None:
    body = "\n\\clearpage\n".join(path.read_text() for path in sources)
    head = r"\documentclass[twocolumn]{article}\usepackage[a4paper,margin=2cm]{geometry}\usepackage{booktabs}"
    (tmp_path / "t.tex").write_text(rf"{head}\begin{{document}}{body}\end{{document}}")
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert "multiply defined" not in log and "Float too large" not in log, log[-3000:]
