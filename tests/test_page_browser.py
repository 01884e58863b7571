"""The page in a real browser, from disk: no error on the console, tables sort, the gallery plays, columns hide, keys work.

Needs Chromium on the PATH (Debian: apt-get install chromium); without it these tests skip.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_runs import make_run

from reports import build_all

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")

# Evaluated before everything else on the page: what goes wrong is kept.
LISTEN = """
window.faults = [];
addEventListener("error", (e) => faults.push(String(e.message)));
console.error = (...words) => faults.push(words.join(" "));
"""
USE = """(async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const press = (name) => document.body.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
  const told = {};
  const table = document.querySelector("table.sortable"), button = table.querySelectorAll("thead th button")[1];
  const column = button.closest("th").cellIndex;
  const values = () => [...table.tBodies[0].rows].map((row) => row.cells[column].dataset.value ?? "");
  button.click(); told.once = values();
  button.click(); told.twice = values();
  const frame = () => Number(document.getElementById("scrub").value), play = document.getElementById("play");
  document.getElementById("gallery").scrollIntoView();
  if (play.textContent === "Play") play.click();
  const frames = new Set();
  for (let i = 0; i < 12; i++) { frames.add(frame()); await wait(100); }
  told.played = frames.size;
  press(" "); told.paused = frame(); await wait(500); told.still = frame();
  press("ArrowRight"); told.stepped = frame();
  const canvas = document.querySelector("#clips canvas");
  told.drawn = new Set(canvas.getContext("2d").getImageData(0, 0, 64, 64).data).size;
  const shown = () => [...document.querySelectorAll("#clips canvas")].filter((c) => c.getClientRects().length).length;
  told.columns = shown(); document.querySelector("#toggles button").click(); told.fewer = shown();
  const theme = () => document.documentElement.dataset.theme;
  told.theme = theme(); document.getElementById("theme").click(); told.other = theme();
  told.points = document.querySelectorAll("#plot .point").length;
  told.wide = document.documentElement.scrollWidth - innerWidth;
  told.outside = performance.getEntriesByType("resource").map((r) => r.name).filter((n) => !n.startsWith("data:"));
  told.paint = performance.getEntriesByName("first-contentful-paint")[0].startTime;
  told.faults = faults;
  return told;
})()"""


class Browser:
    """Chromium over its debugging pipe: messages are JSON that ends with a NUL byte, in on fd 3 and out on fd 4."""

    def __init__(self, width: int) -> None:
        self.number, inward, outward = 0, os.pipe(), os.pipe()
        # Of the child's ends, the shell makes what the browser looks for.
        command = f'exec "$0" "$@" 3<&{inward[0]} 4>&{outward[1]}'
        flags = (*FLAGS, "--remote-debugging-pipe", f"--window-size={width},900")
        self.process = subprocess.Popen(
            ["bash", "-c", command, str(BROWSER), *flags],
            pass_fds=(inward[0], outward[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(inward[0])
        os.close(outward[1])
        self.writer, self.reader = os.fdopen(inward[1], "wb", 0), os.fdopen(outward[0], "rb")
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def ask(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if hasattr(self, "session"):
            message["sessionId"] = self.session
        self.writer.write(json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def read(self) -> dict[str, Any]:
        text = b""
        while not text.endswith(b"\0"):
            byte = self.reader.read(1)
            assert byte, "the browser ended"
            text += byte
        return json.loads(text[:-1])

    def open(self, page: Path) -> None:
        self.ask("Page.enable")
        self.ask("Page.addScriptToEvaluateOnNewDocument", source=LISTEN)
        self.ask("Page.navigate", url=page.as_uri())
        while self.read().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, script: str) -> Any:
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"]["value"]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.writer.close()
        self.reader.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_all(make_run(tmp_path_factory.mktemp("runs") / "run"))


def browse(page: Path, width: int) -> dict[str, Any]:
    """What the page does when it is used, in a window of `width` CSS pixels."""
    browser = Browser(width)
    try:
        browser.open(page)
        return browser.evaluate(USE)
    finally:
        browser.close()


@pytest.mark.parametrize("width", [1280, 500])
def test_it_works_from_disk_at_two_widths(page: Path, width: int) -> None:
    told = browse(page, width)
    assert told["faults"] == [] and told["outside"] == []
    numbers = [[float(v) for v in told[name] if v] for name in ("once", "twice")]
    assert len(numbers[0]) > 3 and numbers[0] == sorted(numbers[0], reverse=numbers[0][0] > numbers[0][-1])
    assert numbers[1] == numbers[0][::-1] and numbers[0] != numbers[1]
    assert told["played"] > 3, "the gallery does not play"
    assert told["paused"] == told["still"] and told["stepped"] == (told["still"] + 1) % 17
    assert told["drawn"] > 2, "the first clip is blank"
    assert 0 < told["fewer"] < told["columns"]
    assert {told["theme"], told["other"]} == {"light", "dark"}
    assert told["points"] > 3
    assert told["wide"] <= 0, "the page is wider than its window"


def test_a_screenshot_is_not_blank(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    flags = (*FLAGS, "--window-size=1280,1600", f"--screenshot={shot}")
    subprocess.run([str(BROWSER), *flags, page.as_uri()], check=True, timeout=120)
    with Image.open(shot) as image:
        assert image.size == (1280, 1600) and len(image.convert("RGB").getcolors(1 << 24) or []) > 200
