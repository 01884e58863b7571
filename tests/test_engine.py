"""Settings, registry and store."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from flgbench.errors import StageFailure, UsageError
from flgbench.registry import Registry, registry
from flgbench.settings import Settings, build_settings, canonical_json, digest, parse_assignments
from flgbench.store import Store

# Settings


class Inner(Settings):
    width: int = 1


class Outer(Settings):
    rate: float = 0.1
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rat": 1}, r"owner has no setting 'rat': did you mean 'rate'\? Settings: rate, inner"),
        ({"inner": {"widht": 1}}, r"owner.inner has no setting 'widht': did you mean 'width'\?"),
        ({"rate": "fast"}, r"owner.rate: .*number.*, got 'fast'"),
        ({"inner": {"width": 1.5}}, r"owner.inner.width: .*integer.*, got 1.5"),
        ({"inner": 3}, r"owner.inner: "),
    ],
)
def test_wrong_settings_are_one_clear_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        build_settings(Outer, values, "owner")
    assert "\n" not in str(error.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        Outer().rate = 2.0  # type: ignore[misc]
    assert build_settings(Outer, {"inner": {"width": 4}}, "owner").inner.width == 4


def test_canonical_json_and_digest() -> None:
    assert canonical_json({"b": 1, "a": [1.0, None]}) == '{"a":[1.0,null],"b":1}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1}) != digest({"a": 2, "b": 2})
    assert len(digest({})) == 12
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": float("nan")})  # NaN is no JSON, and would not equal itself


def test_assignments() -> None:
    found = parse_assignments(["a.lr=1e-5", "a.on=true", "b.kind=self", "a.match.beta2=0", "a.match.steps=2", 'b.l=[1,"x"]'])
    assert found == {
        "a": {"lr": 1e-5, "on": True, "match": {"beta2": 0, "steps": 2}},
        "b": {"kind": "self", "l": [1, "x"]},
    }
    assert parse_assignments([]) == {}


@pytest.mark.parametrize("wrong", ["lr=1", "a.lr", "=1", ".lr=1", "a.=1", "a..lr=1", ""])
def test_malformed_assignments(wrong: str) -> None:
    with pytest.raises(UsageError, match=r"expected METHOD\.SETTING=VALUE"):
        parse_assignments([wrong])


@pytest.mark.parametrize("pair", [["a.x=1", "a.x=1"], ["a.x=1", "a.x.y=2"], ["a.x.y=2", "a.x=1"]])
def test_assignments_given_twice(pair: list[str]) -> None:
    with pytest.raises(UsageError, match=r"a\.x.* is given twice"):
        parse_assignments(pair)


# Registry


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"no method 'fastlightgn': did you mean 'fastlightgen'\? Known: .*dmd2"):
        registry("methods").get("fastlightgn")
    with pytest.raises(UsageError, match=r"no family 'zzz'\. Known: hunyuan, hunyuan-ati2v, wanx"):
        registry("families").check("zzz")


def test_a_name_registered_twice_names_both_owners() -> None:
    entries = Registry("methods")
    with pytest.raises(UsageError, match=r"'dmd2' .* twice, by flgbench \(methods.dmd2:DMD2\) and by mine \(x:Y\)"):
        entries.register("dmd2", "x:Y", "mine")
    entries.register("new", "json:JSONDecoder")
    assert "new" in entries.names() and entries.get("new") is json.JSONDecoder


def test_two_distributions_with_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [EntryPoint("same", f"{m}:X", "flgbench.methods") for m in ("one", "two")]
    monkeypatch.setattr("flgbench.registry.entry_points", lambda group: found)
    with pytest.raises(UsageError, match=r"one:X.*two:X"):
        Registry("methods")


def test_descriptions_are_read_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "explosive.py").write_text('raise SystemExit\n\n\nclass Thing:\n    """First line.\n\n    More."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    entries = Registry("methods")
    entries.register("thing", "explosive:Thing")
    assert entries.describe("thing") == "First line." and "explosive" not in sys.modules


# Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def finished(store: Store, key: str = "data-x-v1-0") -> Path:
    folder = store.start(key)
    (folder / "sub").mkdir()
    (folder / "sub" / "weights.bin").write_bytes(b"12345")
    (folder / "work" / "checkpoint").write_text("half")
    store.event(key, "started")
    store.finish(key, {"seconds": 1.5})
    return folder


def test_an_artifact_is_whole_or_absent(store: Store) -> None:
    folder = store.start("k")
    (folder / "payload").write_text("x")
    assert not store.is_done("k")
    (folder / "done.json.partial").write_text("{")  # killed while sealing
    assert not store.is_done("k")
    store.check(["k", "never started"])
    store.finish("k", {})
    assert store.is_done("k")


def test_sealing(store: Store) -> None:
    folder = finished(store)
    assert not (folder / "work").exists() and store.facts(folder.name) == {"seconds": 1.5}
    store.event(folder.name, "done")  # events go on after the seal and are no damage
    assert store.damage(folder.name) is None
    assert list(json.loads((folder / "done.json").read_text())["files"]) == ["sub/weights.bin"]


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("sub/weights.bin", b"12346", "sub/weights.bin has changed"),
        ("sub/weights.bin", None, "sub/weights.bin is missing"),
        ("done.json", b'{"key', "done.json cannot be read"),
        ("done.json", b"[]", "done.json cannot be read"),
    ],
)
def test_damage_is_named_and_computed_again(store: Store, file: str, content: bytes | None, problem: str) -> None:
    folder = finished(store)
    whole = finished(store, "data-y-v1-1")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(UsageError, match=f"{folder.name} is damaged \\({problem}"):
        store.check([whole.name, folder.name])
    assert not store.is_done(folder.name) and store.is_done(whole.name)
    store.check([whole.name, folder.name])  # the next run starts


def test_events_tolerate_a_cut_line(store: Store) -> None:
    store.start("k")
    assert store.events("k") == [] == store.events("unknown")
    store.event("k", "started")
    with (store.path("k") / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "ev')
    assert [e["event"] for e in store.events("k")] == ["started"]


# Errors and imports


def test_failures_survive_the_way_between_processes() -> None:
    """An exception that cannot be unpickled breaks the whole pool of workers."""
    for error in (StageFailure("drifting", "the loss rose"), UsageError("no such thing")):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error)
    assert pickle.loads(pickle.dumps(StageFailure("drifting", "x"))).word == "drifting"


def test_listing_and_settings_import_no_torch() -> None:
    code = "import sys, flgbench.cli, flgbench.registry, flgbench.store; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
