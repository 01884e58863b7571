"""A report folder: whole or absent, made of what there is, and made again only where something is gone or changed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_runs import make_run, only, rewritten

import reports
from reports import build_all
from reports.data import RunFolderError, load_run
from reports.thumbnails import FIGURES, MOST, TABLES, cells


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def index(folder: Path) -> Path:
    return build_all(folder)


def test_figures_embed_their_fonts(index: Path) -> None:
    for name in ("pareto", "profile", "per_condition", "waterfall", "importance", "training_curves", "filmstrip"):
        pdf = (index.parent / "figures" / f"{name}.pdf").read_bytes()
        assert b"/Type3" not in pdf and b"FontFile2" in pdf
        assert (index.parent / "figures" / f"{name}.png").stat().st_size > 10_000


def test_without_optional_parts(folder: Path, tmp_path: Path) -> None:
    bare = rewritten(folder, tmp_path / "bare", "run.json", lambda run: run.update(finished=None, seconds=None))
    shutil.rmtree(bare / "gallery")
    shutil.rmtree(bare / "curves")
    (bare / "importance.json").unlink()
    page = build_all(bare).read_text()
    assert "This run is in progress: 16 of 18 steps done, 2 failed." in page and "This run has no clips" in page
    drawn = {p.stem for p in (bare / "report" / "figures").glob("*.png")}
    assert drawn == {"pareto", "per_condition", "profile", "waterfall"}


def test_build_all_replaces_the_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "main_table")
    folder = make_run(tmp_path / "run", conditions=6, samples=1, pairs=6, clips=1)
    build_all(folder)
    (folder / "report" / "stale.txt").write_text("old")
    build_all(folder)
    assert not (folder / "report" / "stale.txt").exists()
    assert not list(folder.glob(".report-*"))


def when_made(folder: Path) -> dict[str, int]:
    report = folder / "report"
    return {str(p.relative_to(report)): p.stat().st_mtime_ns for p in report.rglob("*") if p.is_file()}


def made_again(folder: Path) -> set[str]:
    """Files of the report that another build writes, apart from the record of what was made."""
    before = when_made(folder)
    build_all(folder)
    return {name for name, at in when_made(folder).items() if before.get(name) != at} - {".made.json"}


def test_only_what_is_gone_or_changed_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "main_table", "importance", "sweeps", "sweep_figures", "claims")
    folder = make_run(tmp_path / "run", conditions=6, samples=1, pairs=6, clips=1)
    sweeps = [{"sweep": name, "kind": "variant", "point": {name: 0.5}, "cell": f"flg@{name}"} for name in ("alpha", "beta2")]
    sweeps += [{**s, "point": {s["sweep"]: 1.0}, "cell": f"{s['cell']}1"} for s in sweeps]
    cells = json.loads((folder / "cells.json").read_text())
    flg = next(c for c in cells if c["cell"] == "fastlightgen")
    (folder / "cells.json").write_text(json.dumps([*cells, *(flg | s for s in sweeps)]))
    table = pd.read_parquet(folder / "results.parquet")
    own = table[(table.cell == "fastlightgen") & ~table.metric.str.endswith("_s")]
    pd.concat([table, *(own.assign(cell=s["cell"]) for s in sweeps)]).to_parquet(folder / "results.parquet")
    build_all(folder)
    report = folder / "report"
    assert {"figures/sweep-alpha.png", "figures/sweep-beta2.pdf", "tables/sweep-alpha.tex"} <= when_made(folder).keys()
    assert made_again(folder) == set()
    content = {name: (report / name).read_bytes() for name in when_made(folder)}
    for gone, again in {
        "figures/importance.png": {"figures/importance.png", "figures/importance.pdf"},
        "figures/sweep-alpha.pdf": {"figures/sweep-alpha.png", "figures/sweep-alpha.pdf"},
        "tables/sweep-beta2.csv": {f"tables/sweep-beta2.{end}" for end in ("md", "csv", "tex")},
        "index.html": {"index.html"},
    }.items():
        (report / gone).unlink()
        assert made_again(folder) == again
    (report / "tables" / "claims.md").write_text("changed by hand")
    assert made_again(folder) == {"tables/claims.md", "tables/claims.csv"}
    assert {name: (report / name).read_bytes() for name in when_made(folder)} == content, "and all is as it was"
    table.loc[table.metric == "joint", "value"] = 1.0
    pd.concat([table, *(own.assign(cell=s["cell"]) for s in sweeps)]).to_parquet(folder / "results.parquet")
    assert made_again(folder) == content.keys() - {".made.json"}, "other results: everything"


def test_figures_drawn_in_two_processes_are_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "importance", "pareto")
    for count in (1, 2):
        shutil.copytree(folder, tmp_path / str(count), ignore=shutil.ignore_patterns("report", "gallery"))
        monkeypatch.setattr("reports.cores", lambda count=count: count)
        build_all(tmp_path / str(count))
    figures = [{p.name: p.read_bytes() for p in (tmp_path / n / "report" / "figures").iterdir()} for n in "12"]
    assert len(figures[0]) == 4 and figures[0] == figures[1]


def test_a_failing_report_is_named_on_the_page(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = rewritten(folder, tmp_path / "run", "run.json", lambda run: None)
    shutil.rmtree(copy / "gallery")

    def broken(run: object, out: Path) -> list[Path]:
        raise RuntimeError("no <b>luck</b>")

    only(monkeypatch, "importance", "pareto")
    monkeypatch.setattr("reports.importance.build", broken)
    page = build_all(copy).read_text()
    assert "report importance could not be made: RuntimeError: no &lt;b&gt;luck&lt;/b&gt;" in page
    assert (copy / "report" / "figures" / "pareto.png").exists()


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("cells.json", "[{", "not readable as JSON"),
        ("cells.json", '[{"cell": "a"}]', "method: Field required"),
        ("run.json", "{}", "name"),
        ("results.parquet", "nonsense", "not readable as Parquet"),
        ("importance.json", '{"blocks": [0, 1], "x0_error": [1.0]}', "1 values for 2 blocks"),
        ("curves/dmd2.match.jsonl", "{oops\n{}", "line 1 is not JSON"),
    ],
)
def test_damaged_files_are_named(folder: Path, tmp_path: Path, name: str, content: str, word: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("report"))
    (copy / name).write_text(content)
    with pytest.raises(RunFolderError, match=re.escape(word)) as error:
        load_run(copy)
    assert name.split("/")[-1] in str(error.value) and "\n" not in str(error.value)


def test_results_must_agree_with_their_status(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("report"))
    table = pd.read_parquet(folder / "results.parquet")
    hollow = table.copy()
    hollow.loc[hollow.index[0], ["value", "status"]] = [np.nan, "ok"]
    hollow.to_parquet(copy / "results.parquet")
    with pytest.raises(RunFolderError, match="hold no number"):
        load_run(copy)
    filled = table.copy()
    filled.loc[filled.index[0], ["value", "status"]] = [0.0, "missing"]
    filled.to_parquet(copy / "results.parquet")
    with pytest.raises(RunFolderError, match="missing rows hold a number"):
        load_run(copy)
    table.assign(cell="ghost").to_parquet(copy / "results.parquet")
    with pytest.raises(RunFolderError, match="ghost"):
        load_run(copy)


def test_every_report_is_listed_with_a_small_thumbnail() -> None:
    folder = Path(reports.__file__).parent
    listed = (folder / "README.md").read_text()
    assert all(f"| `{name}` |" in listed for name in reports.BUILT_IN)
    thumbnails = {p.stem: p for p in (folder / "measured" / "thumbnails").glob("*.png")}
    assert thumbnails.keys() == reports.BUILT_IN.keys() - {"trainings"}, "of trainings there is no measured table yet"
    assert thumbnails.keys() == TABLES.keys() | FIGURES.keys()
    sizes = [p.stat().st_size for p in thumbnails.values()]
    assert max(sizes) <= MOST and sum(sizes) <= 500 * 1024
    for name in thumbnails:
        assert f'"measured/thumbnails/{name}.png"' in listed
    assert all((folder / link).exists() for link in re.findall(r'(?:href|src)="(measured/[^"]+)"', listed))


def test_a_table_is_read_as_it_is_printed() -> None:
    text = "### T\n\nCaption.\n\n|  | Joint (%) |\n| :-- | --: |\n| A\\|b | **87.0** \\[1, 2\\]<sup>a</sup> |\n\nLegend | x"
    assert cells(text) == [["", "Joint (%)"], ["A|b", "87.0"]]
