"""Real clips become training data: the rules of reading them, what is bad, shards that survive a kill, lazy reading."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import encode_worker
import numpy as np
import pytest
import torch
from conftest import Flgbench, assert_refused
from encode_worker import SHAPE
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from flgbench.data import clips, encoded, shapes
from flgbench.data.captions import captions_of
from flgbench.data.videos import BadClipError, Shape, read_clip, resample
from flgbench.models.base import Condition
from flgbench.models.wanx import WanX
from flgbench.stage import TrainingData
from flgbench.video import write_mp4

# (height, width), frames a second: 45 clips go through them in turn.
KINDS = (((64, 64), 8), ((48, 96), 24), ((90, 50), 12), ((32, 32), 30), ((120, 160), 16), ((30, 34), 8), ((64, 80), 25))
GOOD, CAPTIONED = 45, "captions.csv"
BAD = {
    "bad/audio.mp4": "no video stream",
    "bad/short.mp4": "too short",
    "bad/text.mp4": "cannot be read",
    "bad/truncated.mp4": "cannot be read",
    "bad/untold.mp4": "no caption",
    "gone.mp4": "named in the captions, but not in the folder",
}


def frames_of(index: int, size: tuple[int, int], count: int) -> np.ndarray:
    """(count, H, W, 3): a procedural clip that stands still for as long as `count` needs."""
    video = shapes.render(shapes.draw_factors("train", [index]))[0].numpy()
    frames = [np.asarray(Image.fromarray(frame).resize(size[::-1])) for frame in video]
    return np.stack([frames[min(len(frames) - 1, i * len(frames) // count)] for i in range(count)])


def write_audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 files: 45 good clips of several sizes and rates, five bad ones; the captions name one more that is not there."""
    where = tmp_path_factory.mktemp("clips")
    (where / "bad").mkdir()
    captions = captions_of(shapes.draw_factors("train", np.arange(GOOD)))
    rows = []
    for i in range(GOOD):
        size, fps = KINDS[i % len(KINDS)]
        write_mp4(where / f"clip{i:02d}.mp4", frames_of(i, size, fps // 2 + 1), fps)
        rows.append((f"clip{i:02d}.mp4", captions[i]))
    write_mp4(where / "bad" / "untold.mp4", frames_of(0, (64, 64), 8), 8)
    write_mp4(where / "bad" / "short.mp4", frames_of(0, (64, 64), 4), 8)
    whole = (where / "clip00.mp4").read_bytes()
    (where / "bad" / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (where / "bad" / "text.mp4").write_text("this is no video\n" * 100)
    write_audio(where / "bad" / "audio.mp4")
    rows += [(name, "a red circle") for name in BAD if name != "bad/untold.mp4"]
    with (where / CAPTIONED).open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption"), *rows])
    return where


@pytest.fixture(scope="module")
def model(tiny_model: WanX) -> WanX:
    return encode_worker.small(tiny_model)


@pytest.fixture(scope="module")
def whole(folder: Path, model: WanX, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder encoded without an interruption."""
    out = tmp_path_factory.mktemp("encoded") / "set"
    return out, encode_worker.encode(model, folder, folder / CAPTIONED, out)


def test_the_same_clip_is_written_in_the_same_bytes(tmp_path: Path) -> None:
    video = frames_of(1, (64, 64), 17)
    found = set()
    for _ in range(20):
        write_mp4(tmp_path / "clip.mp4", video, 8)
        found.add((tmp_path / "clip.mp4").read_bytes())
    assert len(found) == 1


def test_good_and_bad(whole: tuple[Path, dict[str, Any]], folder: Path) -> None:
    out, manifest = whole
    assert json.loads((out / clips.MANIFEST).read_text()) == manifest
    assert [c["file"] for c in manifest["clips"]] == [f"clip{i:02d}.mp4" for i in range(GOOD)]
    assert {entry["file"] for entry in manifest["bad"]} == set(BAD)
    for entry in manifest["bad"]:
        assert BAD[entry["file"]] in entry["reason"], entry
    for clip in manifest["clips"]:
        assert clip["sha256"] == hashlib.sha256((folder / clip["file"]).read_bytes()).hexdigest()
    for part in (manifest["negative"], *manifest["shards"]):
        assert part["sha256"] == hashlib.sha256((out / part["file"]).read_bytes()).hexdigest()
    # The five bad ones come first in the list of files and their places stay empty.
    assert [s["clips"] for s in manifest["shards"]] == [4, 8, 8, 8, 8, 8, 1]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        ["manifest.json", "negative.safetensors", *(s["file"] for s in manifest["shards"])]
    )


def test_what_is_stored_is_what_the_model_says(whole: tuple[Path, dict[str, Any]], folder: Path, model: WanX) -> None:
    out, manifest = whole
    data = encoded.training_data(out)
    assert len(data) == GOOD and isinstance(data.latents, encoded.StoredLatents)
    for row in (0, 17, GOOD - 1):
        clip = manifest["clips"][row]
        video = torch.from_numpy(read_clip(folder / clip["file"], SHAPE))
        assert video.shape == (5, 32, 32, 3)
        one = torch.tensor([row])
        assert torch.equal(data.latents[one], model.encode_video(video[None]))
        expected = model.condition(video[None, 0], [clip["caption"]]).tensors()
        found = data.condition.select(one).tensors()
        assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


def test_batches_are_those_of_the_same_clips_in_memory(whole: tuple[Path, dict[str, Any]]) -> None:
    out, manifest = whole
    parts = [load_file(out / shard["file"]) for shard in manifest["shards"]]
    tensors = {k: torch.cat([p[k] for p in parts]) for k in parts[0]} | load_file(out / manifest["negative"]["file"])
    memory = TrainingData(tensors["latents"], Condition.from_tensors(tensors))
    stored = encoded.training_data(out)
    for seed in range(3):
        for share in range(2):
            a, b = (d.batch(6, torch.Generator().manual_seed(seed), share, 2) for d in (memory, stored))
            assert torch.equal(a.latents, b.latents)
            ours, theirs = a.condition.tensors(), b.condition.tensors()
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert torch.equal(memory.latents[:12], stored.latents[:12])


def test_rows_of_a_large_shard_are_read_alone(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Memory that is not the file's own grows by the rows that are drawn, not by the shard."""

    def private() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) // 1024

    rows, of_a_row = 64, 2**18  # 64 MB of latents
    text = torch.zeros(rows, 2, 4)
    latents = torch.arange(rows).float()[:, None].repeat(1, of_a_row)
    save_file({"latents": latents, "text": text, "image": text.clone()}, tmp_path / "shard-00000.safetensors")
    del latents
    shutil.copy(whole[0] / clips.NEGATIVE, tmp_path)
    told = {"shards": [{"file": "shard-00000.safetensors", "clips": rows}], "negative": {"file": clips.NEGATIVE}}
    (tmp_path / clips.MANIFEST).write_text(json.dumps({"format": clips.FORMAT, **told}))
    data = encoded.training_data(tmp_path)
    before = private()
    for row in range(rows):
        assert data.latents[torch.tensor([row])].unique().tolist() == [row]
    assert private() - before < 32


def test_kill_9_and_resume(whole: tuple[Path, dict[str, Any]], folder: Path, model: WanX, tmp_path: Path) -> None:
    """Killed in the fourth shard: three are kept, the rest is made now, and every byte is that of the whole run."""
    out = tmp_path / "set"
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    arguments = [str(folder), str(folder / CAPTIONED), str(out), "27"]
    done = subprocess.run(
        [sys.executable, encode_worker.__file__, *arguments],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*.safetensors")}
    assert len(kept) == 3 and not (out / clips.MANIFEST).exists()
    seen: list[tuple[str, bool]] = []
    manifest = encode_worker.encode(model, folder, folder / CAPTIONED, out, lambda file, bad, new: seen.append((file, new)))
    assert manifest == whole[1]
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("shard-*.safetensors") if p.name in kept} == kept
    assert sum(new for _, new in seen) == GOOD + 4 - 3 * encode_worker.SHARD_CLIPS and len(seen) == GOOD + len(BAD)
    for file in whole[0].iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes(), file.name
    assert not (out / clips.WORK).exists()
    # A third time there is nothing to do.
    assert encode_worker.encode(model, folder, folder / CAPTIONED, out, lambda *_: pytest.fail("read again")) == manifest


def test_a_damaged_set_is_noticed(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out = shutil.copytree(whole[0], tmp_path / "set")
    assert encoded.damage(out) is None
    shard = out / whole[1]["shards"][1]["file"]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    assert encoded.damage(out) == f"{shard.name} has changed since it was written"
    shard.unlink()
    assert encoded.damage(out) == f"{shard.name} is missing"


TIMES = st.lists(st.integers(1, 400), min_size=1, max_size=40).map(
    lambda gaps: [Fraction(sum(gaps[:i]), 1000) for i in range(len(gaps))]
)


@given(TIMES, st.integers(1, 30), st.integers(1, 20), st.fractions(-5, 5))
def test_resampling_takes_the_nearest_frame(times: list[Fraction], fps: int, count: int, start: Fraction) -> None:
    """Against the definition, searched by brute force; only differences of times matter."""
    end = times[-1] * (1 + Fraction(1, 2 * max(1, len(times) - 1)))
    stream = [(start + t, i) for i, t in enumerate(times)]
    if Fraction(count - 1, fps) > end:
        with pytest.raises(BadClipError, match="too short"):
            list(resample(stream, fps, count))
        return
    chosen = list(resample(stream, fps, count))
    wanted = [min(range(len(times)), key=lambda i: (abs(times[i] - Fraction(k, fps)), i)) for k in range(count)]
    assert chosen == wanted


def test_resampling_reads_no_further_than_it_must() -> None:
    read: list[int] = []

    def endless() -> Iterator[tuple[Fraction, int]]:
        for i in range(10**9):
            read.append(i)
            yield Fraction(i, 24), i

    assert list(resample(endless(), 8, 5)) == [0, 3, 6, 9, 12]
    assert read[-1] == 12
    assert list(resample([(Fraction(0), "a"), (Fraction(0), "twice"), (Fraction(1, 2), "b")], 4, 3)) == ["a", "a", "b"]
    with pytest.raises(BadClipError, match="no frames"):
        list(resample([], 8, 5))


def test_frames_of_the_right_size_and_rate_are_left_alone(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", frames_of(3, (64, 64), 17), 8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stored = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert np.array_equal(read_clip(tmp_path / "a.mp4", Shape(17, 64, 64, 8)), stored)


def striped(height: int, width: int) -> np.ndarray:
    """(17, H, W, 3): a red, a green and a blue third from left to right."""
    frame = np.zeros((height, width, 3), np.uint8)
    for i in range(3):
        frame[:, i * width // 3 : (i + 1) * width // 3, i] = 255
    return np.repeat(frame[None], 17, 0)


def seen(path: Path, height: int, width: int) -> list[list[int]]:
    """The brightest channel at the left, in the middle and at the right; and at the top, in the middle and at the bottom."""
    frame = read_clip(path, Shape(17, height, width, 8))[8].astype(int)
    rows, columns = (np.array([0.1, 0.5, 0.9]) * n for n in (height, width))
    across = [int(frame[height // 2, int(x)].argmax()) for x in columns]
    down = [int(frame[int(y), width // 2].argmax()) for y in rows]
    return [across, down]


def test_cover_and_crop(tmp_path: Path) -> None:
    """A wide clip keeps the middle of its width, also when it has to grow; a clip of the same ratio keeps everything."""
    write_mp4(tmp_path / "wide.mp4", striped(32, 192), 8)
    assert seen(tmp_path / "wide.mp4", 64, 64)[0] == [1, 1, 1]  # the middle third is twice as wide as it is high
    assert seen(tmp_path / "wide.mp4", 16, 96)[0] == [0, 1, 2]


def test_turned_and_stretched_clips_are_made_upright_and_square(tmp_path: Path) -> None:
    """A telephone writes 'turn by 90 degrees' beside the pixels, a camera 'twice as wide'."""
    write_mp4(tmp_path / "a.mp4", striped(64, 96), 8)
    content = (tmp_path / "a.mp4").read_bytes()
    matrix = content.index(b"tkhd") + 4 + 4 + 36  # version 0: 36 bytes between flags and matrix
    one, zero = 1 << 16, 0
    assert content[matrix : matrix + 36] == struct.pack(">9i", one, zero, zero, zero, one, zero, zero, zero, 1 << 30)
    for name, terms, down in (("right", (zero, one, -one, zero), [0, 1, 2]), ("left", (zero, -one, one, zero), [2, 1, 0])):
        a, b, c, d = terms
        turned = struct.pack(">9i", a, b, zero, c, d, zero, zero, zero, 1 << 30)
        (tmp_path / f"{name}.mp4").write_bytes(content[:matrix] + turned + content[matrix + 36 :])
        across, found = seen(tmp_path / f"{name}.mp4", 96, 64)
        assert found == down and across == [1, 1, 1]
    with av.open(str(tmp_path / "narrow.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4)
        for frame in striped(64, 48):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert seen(tmp_path / "narrow.mp4", 64, 192)[0] == [0, 1, 2], "shown 192 wide, so all three thirds are seen"
    assert seen(tmp_path / "narrow.mp4", 64, 48)[0] == [1, 1, 1]


def test_a_playlist_in_disguise_opens_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        (tmp_path / "a.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}\n#EXT-X-ENDLIST\n")
        with pytest.raises(BadClipError):
            read_clip(tmp_path / "a.mp4", SHAPE)
        with pytest.raises(TimeoutError):
            server.accept()


def test_the_verb(flgbench: Flgbench, folder: Path, tmp_path: Path) -> None:
    """With the shipped teacher: one good clip, one bad one; then the same again, then with other settings."""
    where = tmp_path / "clips"
    where.mkdir()
    write_mp4(where / "good.mp4", frames_of(0, (64, 64), 17), 8)
    shutil.copy(folder / "bad" / "text.mp4", where / "text.mp4")
    (tmp_path / "c.jsonl").write_text(
        "".join(json.dumps({"file_name": n, "caption": " a  red\ncircle "}) + "\n" for n in ("good.mp4", "text.mp4"))
    )
    line = ["encode", str(where), "--captions", "c.jsonl", "-o", "set"]
    code, printed, told = flgbench(*line)
    assert code == 1, told
    assert printed.splitlines()[0].startswith("bad: text.mp4: cannot be read")
    assert printed.splitlines()[-1] == "1 clips in 1 shards, 1 bad: set"
    assert "1 clips encoded in" in told and "frames/s" in told
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert manifest["clips"][0]["caption"] == "a red circle", "as the stock pipeline cleans it"
    assert (
        manifest["settings"] | {"frames": 17, "height": 64, "width": 64, "fps": 8, "model": "wanx", "scale": "tiny"}
        == (manifest["settings"])
    )
    code, printed, told = flgbench(*line, "--json")
    assert code == 1 and told == "" and json.loads(printed) == {"folder": "set", "clips": 1, "bad": manifest["bad"]}
    assert_refused(flgbench(*line, "--shard-clips", "4"), "-o set", "shard_clips 32, not 4", "another folder")
    (where / "text.mp4").unlink()
    assert_refused(flgbench(*line), "-o set", "other clips or captions")


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "no folder": (["none", "--captions", "c.csv"], ["none: no such folder of clips"]),
    "no videos": (["empty", "--captions", "c.csv"], ["empty: no videos in it", ".mp4"]),
    "no captions": (["clips", "--captions", "none.csv"], ["--captions none.csv: no such file"]),
    "captions of a kind": (["clips", "--captions", "c.txt"], ["--captions c.txt", ".csv or a .jsonl"]),
    "column": (["clips", "--captions", "column.csv"], ["column.csv: no column 'caption'", "file_name and caption"]),
    "no rows": (["clips", "--captions", "rows.csv"], ["rows.csv: no captions in it"]),
    "not text": (["clips", "--captions", "binary.csv"], ["binary.csv: cannot be read"]),
    "not JSON": (["clips", "--captions", "broken.jsonl"], ["broken.jsonl, line 2: not a JSON object"]),
    "no name": (["clips", "--captions", "nameless.jsonl"], ["nameless.jsonl, line 1: no file_name"]),
    "twice": (["clips", "--captions", "twice.csv"], ["twice.csv, line 3: 'a.mp4' has a caption already"]),
    "other folder": (["clips", "--captions", "c.csv", "-o", "clips"], ["-o clips: holds something else"]),
    "a file": (["clips", "--captions", "c.csv", "-o", "c.csv"], ["-o c.csv: is a file"]),
    "below a file": (["clips", "--captions", "c.csv", "-o", "c.csv/set"], ["-o c.csv/set: cannot write there"]),
    "scale": (["clips", "--captions", "c.csv", "--scale", "900b"], ["--scale 900b", "tiny"]),
    "model": (["clips", "--captions", "c.csv", "--model", "wan"], ["no family 'wan'", "did you mean 'wanx'"]),
    "workers": (["clips", "--captions", "c.csv", "--workers", "0"], ["--workers"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case: str, flgbench: Flgbench, tmp_path: Path) -> None:
    for name, text in {
        "c.csv": "file_name,caption\na.mp4,a\n",
        "c.txt": "a.mp4 a\n",
        "column.csv": "file_name,text\na.mp4,a\n",
        "rows.csv": "file_name,caption\n",
        "broken.jsonl": '{"file_name": "a.mp4", "caption": "a"}\n{"file_name"\n',
        "nameless.jsonl": '{"caption": "a"}\n',
        "twice.csv": "file_name,caption\na.mp4,a\na.mp4,b\n",
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("clips", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "clips" / "a.mp4").write_text("")
    arguments, words = WRONG[case]
    out = [] if "-o" in arguments else ["-o", "set"]
    assert_refused(flgbench("encode", *arguments, *out), *words)
    assert not (tmp_path / "set").exists(), "before any work"
