"""The page: hostile text stays text, nothing is loaded, the gallery carries the very pixels, and it works in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_runs import HOSTILE, Tags, make_run, read_csv, rewritten

from reports import build_all, gallery
from reports.data import load_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def index(folder: Path) -> Path:
    return build_all(folder)


def hostile_run(source: Path, target: Path) -> Path:
    def change(cells: list[dict[str, Any]]) -> None:
        cells[3] |= {"label": HOSTILE, "changes": HOSTILE}
        cells[3]["settings"] = {HOSTILE: HOSTILE}
        cells[5]["reason"] = HOSTILE

    folder = rewritten(source, target, "cells.json", change)
    told = json.loads((folder / "gallery" / "conditions.json").read_text())
    told[0]["caption"] = HOSTILE
    (folder / "gallery" / "conditions.json").write_text(json.dumps(told))
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(
        json.dumps(run | {"name": HOSTILE, "command": HOSTILE, "environment": {HOSTILE: HOSTILE}})
    )
    return folder


@pytest.fixture(scope="module")
def hostile(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_all(hostile_run(folder, tmp_path_factory.mktemp("hostile") / "run"))


def test_hostile_text_stays_text(index: Path, hostile: Path) -> None:
    plain, tainted = Tags(), Tags()
    plain.feed(index.read_text())
    tainted.feed(hostile.read_text())
    scripts = [sum(tag == "script" for tag, _ in page.tags) for page in (plain, tainted)]
    assert scripts[0] == scripts[1]
    assert not any("onerror" in attributes for _, attributes in tainted.tags)
    assert not any(tag == "img" and not str(a.get("src")).startswith("data:image/") for tag, a in tainted.tags)
    assert "&lt;script&gt;alert(1)" in hostile.read_text() and "{{ 7*7 }}" in hostile.read_text()
    for line in (hostile.parent / "tables" / "main.md").read_text().splitlines():
        assert "<script" not in line and "<img" not in line
    assert read_csv(hostile).loc["fastlightgen", "label"] == HOSTILE


def test_page_loads_nothing(index: Path) -> None:
    page = Tags()
    page.feed(index.read_text())
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "href", "data", "poster", "action"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:image/", "#", "figures/")), (tag, name, target)
        assert tag not in ("link", "iframe", "object", "embed", "base")
    style = "".join(re.findall(r"<style>(.*?)</style>", index.read_text(), re.S))
    assert "@import" not in style and "url(" not in style
    scripts = "".join(re.findall(r"<script>(.*?)</script>", index.read_text(), re.S))
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(|https?://(?!www\.w3\.org/2000/svg)", scripts)
    assert index.stat().st_size < 25 * 2**20


def test_gallery_carries_the_very_pixels(folder: Path) -> None:
    run = load_run(folder)
    found = gallery.payload(run, {c.cell: "#000000" for c in run.cells})
    assert found is not None and run.gallery is not None
    assert found["cells"][0]["cell"] == "real"
    url = found["conditions"][1]["clips"]["fastlightgen"]
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))
    video = run.gallery.videos["fastlightgen"][1]
    assert strip.shape == (64, 17 * 64, 3)
    assert (strip.reshape(64, 17, 64, 3).transpose(1, 0, 2, 3) == video).all()
    few = gallery.encoded(run.gallery, gallery.columns(run, run.gallery), budget=1)
    assert few == []  # too small a budget leaves clips out rather than growing the page


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("which", ["index", "hostile"])
def test_latex_compiles_at_page_width(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tables = request.getfixturevalue(which).parent / "tables"
    body = "\n".join(path.read_text() for path in sorted(tables.glob("*.tex")))
    head = r"\documentclass[twocolumn]{article}\usepackage[a4paper,margin=2cm]{geometry}\usepackage{booktabs}"
    (tmp_path / "t.tex").write_text(rf"{head}\begin{{document}}{body}\end{{document}}")
    done = subprocess.run(
        ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "t.tex"],
        cwd=tmp_path,
        capture_output=True,
    )
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0, log[-2000:]
    if which == "index":
        assert "Overfull \\hbox" not in log, log[-3000:]


CHECKS = """
<script>
const faults = [];
addEventListener("error", (e) => faults.push(String(e.message)));
addEventListener("load", () => setTimeout(async () => {
  const wait = (ms) => new Promise((r) => setTimeout(r, ms)), found = {};
  const frame = () => Number(document.getElementById("scrub").value);
  const key = (k) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key: k, bubbles: true }));
  if (document.getElementById("play").textContent === "Pause") key(" ");
  found.paused = document.getElementById("play").textContent === "Play";
  const before = frame();
  key("ArrowRight");
  found.stepped = frame() === (before + 1) % 17;
  key(" ");
  await wait(600);
  found.plays = frame() !== (before + 1) % 17;
  const table = document.querySelector("table.sortable"), button = table.querySelectorAll("thead button")[2];
  const column = () => [...table.tBodies[0].rows].map((r) => r.cells[2].dataset.value);
  button.click();
  found.sorted = column();
  document.getElementById("clips").scrollIntoView();
  await wait(500);
  const canvas = document.querySelector("#clips canvas");
  const painted = (c) => c.getContext("2d").getImageData(0, 0, 64, 64).data.some((v, i) => i % 4 !== 3 && v > 0);
  found.drawn = painted(canvas);
  const last = document.querySelector(".clip-row:last-child canvas");
  last.scrollIntoView();
  await wait(500);
  found.drawnLast = painted(last);
  document.querySelector("#plot .point").dispatchEvent(new MouseEvent("click", { bubbles: true }));
  found.picked = document.querySelectorAll("tr.picked").length;
  found.points = document.querySelectorAll("#plot .point").length;
  const theme = document.documentElement.dataset.theme;
  document.getElementById("theme").click();
  found.theme = document.documentElement.dataset.theme !== theme;
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  console.log("CHECKED" + btoa(JSON.stringify({ ...found, faults })) + "END");
}, 300));
</script>
"""
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
@pytest.mark.parametrize("width", [1400, 400])
def test_page_works_in_a_browser(index: Path, tmp_path: Path, width: int) -> None:
    page = tmp_path / "index.html"
    page.write_text(index.read_text().replace("<body>", "<body>" + CHECKS, 1))
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900",
        "--enable-logging=stderr",
        "--remote-debugging-port=0",
    ]
    with subprocess.Popen(
        [str(BROWSER), *flags, page.as_uri()], stderr=subprocess.PIPE, text=True, errors="replace"
    ) as browser:
        guard = threading.Timer(60, browser.kill)
        guard.start()
        said, found = [], None
        assert browser.stderr is not None
        for line in browser.stderr:
            said += [line] if "CONSOLE" in line else []
            if found := re.search(r"CHECKED(.*?)END", line):
                break
        guard.cancel()
        browser.terminate()
    assert found, said
    checked = json.loads(base64.b64decode(found.group(1)))
    assert checked["faults"] == [] and len(said) == 1, said
    assert checked["paused"] and checked["stepped"] and checked["plays"] and checked["drawn"] and checked["drawnLast"]
    assert checked["theme"]
    numbers = [float(v) for v in checked["sorted"] if v]
    assert numbers == sorted(numbers, reverse=True) and checked["sorted"][-1] == ""  # missing sorts last
    assert checked["points"] == 5 and checked["picked"] >= 3
    assert checked["overflow"] <= 0  # nothing wider than the window
