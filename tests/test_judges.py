"""The trained judges: what they were accepted at, what they must notice, and what runs without weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clip.model import CLIP
from conftest import Flgbench, assert_refused
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.models import alexnet

from flgbench.data import shapes
from flgbench.data.captions import captions_of
from flgbench.errors import UsageError
from flgbench.metrics import learned
from flgbench.metrics.corruptions import backwards, half_speed
from flgbench.metrics.judges import WEIGHTS, classifier, clip_alignment, fingerprint, lpips_first_frame, train_clip
from flgbench.metrics.judges.train_classifier import ACCEPTED, Recipe, augment
from flgbench.shipped import ship, verify

CLIPS = 128


@pytest.fixture(scope="module")
def factors() -> shapes.Factors:
    return shapes.draw_factors("test", np.arange(CLIPS))


@pytest.fixture(scope="module")
def video(factors: shapes.Factors) -> torch.Tensor:
    return shapes.render(factors)


def named(video: torch.Tensor, factors: shapes.Factors) -> dict[str, float]:
    found, _ = learned.judged(video, factors)
    return {name: float(np.mean(values)) for name, values in found.items()}


def test_the_classifier_was_accepted_and_is_as_good_on_clips_of_this_test(
    video: torch.Tensor, factors: shapes.Factors
) -> None:
    recorded = json.loads((classifier.WEIGHTS / "gate.json").read_text())["accuracy"]
    assert set(recorded) == {*classifier.CLASSES, "all"}
    assert all(share >= ACCEPTED for name, share in recorded.items() if name != "all"), recorded
    found = named(video, factors)
    for name in classifier.CAPTIONED:  # at 0.99, four errors in 128 have a chance of 4 %
        assert found[f"named_{name}"] >= 1 - 4 / CLIPS, name
    assert found["named_all"] <= min(found[f"named_{name}"] for name in classifier.CAPTIONED)


def test_it_bears_what_models_do_to_clips(video: torch.Tensor, factors: shapes.Factors) -> None:
    clips = augment(classifier.to_input(video), Recipe(), torch.Generator().manual_seed(0))
    damaged = clips.mul(255).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
    found = named(damaged, factors)
    assert min(found[f"named_{name}"] for name in classifier.CAPTIONED) > 0.93


def test_it_notices_what_it_is_there_for(video: torch.Tensor, factors: shapes.Factors) -> None:
    assert named(backwards(video, factors), factors)["named_direction"] < 0.3
    assert named(half_speed(video, factors), factors)["named_speed"] < 0.7
    other = replace(factors, shape=(factors.shape + 1) % 4, colour=(factors.colour + 3) % 8)
    wrong = named(shapes.render(other), factors)
    assert wrong["named_shape"] < 0.05 and wrong["named_colour"] < 0.05 and wrong["named_all"] < 0.05
    assert wrong["named_size"] > 0.9


def test_clips_of_another_size_are_refused_and_none_are_nothing() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 video \(N, 17, 64, 64, 3\), got torch.uint8 \(1, 9, 64, 64, 3\)"):
        classifier.examine(torch.zeros(1, 9, 64, 64, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="float32"):
        classifier.examine(torch.zeros(1, 17, 64, 64, 3))
    classes, features = classifier.examine(torch.zeros(0, 17, 64, 64, 3, dtype=torch.uint8))
    assert features.shape == (0, classifier.FEATURES) and all(len(v) == 0 for v in classes.values())


def test_clip_prefers_a_clip_s_own_caption_and_is_blind_to_motion(video: torch.Tensor, factors: shapes.Factors) -> None:
    own = clip_alignment.alignment(video, captions_of(factors))
    other = replace(factors, shape=(factors.shape + 1) % 4, colour=(factors.colour + 3) % 8)
    swapped = clip_alignment.alignment(video, captions_of(other))
    assert (own > swapped).mean() > 0.97 and own.mean() - swapped.mean() > 0.2
    still = clip_alignment.alignment(video[:, :1].expand_as(video), captions_of(factors))
    assert abs(still.mean() - own.mean()) < 0.05
    with pytest.raises(ValueError, match="128 clips but 1 captions"):
        clip_alignment.alignment(video, ["a red circle"])


def test_the_tiny_clip_is_the_package_s_own_class_loaded_by_its_own_loader() -> None:
    model, preprocess = clip_alignment.load()
    assert type(model).__module__ == "clip.model" and callable(preprocess)
    assert preprocess(Image.new("RGB", (200, 100))).shape == (3, shapes.SIZE, shapes.SIZE)
    state = train_clip.build().state_dict()
    rows = clip_alignment.used_rows(state, [5, 3, 5])
    assert rows["tokens"].tolist() == [3, 5] and rows[clip_alignment.EMBEDDING].shape[0] == 2
    back = clip_alignment.all_rows(rows)
    assert back.keys() == state.keys()
    assert torch.equal(back[clip_alignment.EMBEDDING][[3, 5]], state[clip_alignment.EMBEDDING][[3, 5]])
    assert back[clip_alignment.EMBEDDING][4].abs().sum() == 0


def test_a_local_file_of_weights_is_loaded_the_same_way(
    tmp_path: Path, video: torch.Tensor, factors: shapes.Factors
) -> None:
    """Another size of the package's class, with 77 tokens as OpenAI's files have."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = CLIP(32, 32, 2, 64, 16, 77, 49408, 64, 1, 1)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    loaded = clip_alignment.load(tmp_path / "other.pt")
    found = clip_alignment.alignment(video[:3], captions_of(_first(factors, 3)), loaded)
    assert loaded[0].visual.input_resolution == 32 and found.shape == (3,) and np.isfinite(found).all()


def test_the_contrastive_loss_knows_that_two_captions_may_mean_the_same() -> None:
    alike = torch.tensor([[True, False, True], [False, True, False], [True, False, True]])
    perfect = 100.0 * alike.float()
    loss = train_clip.contrastive_loss(perfect, perfect.T, alike)
    shared = (2 * np.log(2)) / 3  # two of three rows can only be as sure as one in two
    assert loss.item() == pytest.approx(shared, abs=1e-4)
    assert train_clip.contrastive_loss(-perfect, -perfect.T, alike) > 10


def test_lpips_says_why_it_does_not_run_and_runs_with_a_trunk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, video: torch.Tensor, factors: shapes.Factors
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert lpips_first_frame.why_not().startswith("not run: no alexnet-features.safetensors")
    assert np.isnan(learned.judged(video[:2], _first(factors, 2))[0]["first_frame_lpips"]).all()
    assert fingerprint()["lpips"] == "absent"

    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = alexnet(weights=None)  # its weights are no LPIPS, but its way through the package is the real one's
    lpips_first_frame.trunk_file().parent.mkdir(parents=True)
    save_file(trunk.features.state_dict(), lpips_first_frame.trunk_file())
    assert lpips_first_frame.why_not() == "" and fingerprint()["lpips"] == "present"
    frames = video[:4, 0]
    assert lpips_first_frame.first_frame_lpips(frames, frames) == pytest.approx(np.zeros(4), abs=1e-6)
    assert (lpips_first_frame.first_frame_lpips(frames, frames.roll(1, 0)) > 1e-4).all()
    # The trunk's weights are really used: its first layer is what was saved.
    network = lpips_first_frame._network(lpips_first_frame.trunk_file())
    assert torch.equal(network.net.slice1[0].weight, trunk.features[0].weight)


def test_set_distances_are_the_closed_forms_and_refuse_small_sets() -> None:
    rng = np.random.default_rng(0)
    real = learned.real_features()
    assert real.shape == (4096, classifier.FEATURES)
    same, shifted = real[rng.permutation(4096)[:512]], real[:512] + 0.2
    found, worse = learned.distances(same), learned.distances(shifted)
    assert found["frechet"] < 0.5 * worse["frechet"] and abs(found["kernel"]) < 0.2 * worse["kernel"]
    mean, sigma = real.mean(0), np.cov(real.T)
    gap, other = same.mean(0) - mean, np.cov(same.T)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(sigma @ other).real, 0)).sum()
    assert found["frechet"] == pytest.approx(gap @ gap + np.trace(sigma) + np.trace(other) - 2 * roots, rel=1e-3)
    assert np.isnan(learned.distances(real[:255])["frechet"]) and np.isfinite(learned.distances(real[:255])["kernel"])
    assert np.isnan(learned.distances(real[:31])["kernel"])
    before = torch.random.get_rng_state()
    assert learned.distances(same) == found  # the subsets are seeded, and the global generator is left alone
    assert torch.equal(torch.random.get_rng_state(), before)


def test_features_of_damaged_clips_are_farther_from_real_ones(video: torch.Tensor) -> None:
    many = shapes.render(shapes.draw_factors("test", np.arange(256)))
    _, clean = classifier.examine(many)
    _, still = classifier.examine(many[:, :1].expand_as(many))
    assert learned.distances(still)["frechet"] > 5 * learned.distances(clean)["frechet"]
    assert learned.distances(still)["kernel"] > 5 * abs(learned.distances(clean)["kernel"])


def test_shipped_weights_are_small_and_hold_their_hashes() -> None:
    for name in ("classifier", "clip"):
        verify(WEIGHTS / name)
        files = {p.name for p in (WEIGHTS / name).iterdir()}
        assert {"model.safetensors", "recipe.json", "log.jsonl", "gate.json", "sha256.json"} <= files
    assert sum(p.stat().st_size for p in WEIGHTS.rglob("*") if p.is_file()) < 4e6


def test_weights_are_shipped_whole_and_replace_what_was_there(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("{}\n")
    folder = tmp_path / "weights"
    for value in (0.0, 1.0):
        ship(folder, {"model": {"w": torch.full((2, 3), value).T}}, {"gate": {"accuracy": value}}, log)
        verify.cache_clear()
        verify(folder)
        assert torch.equal(load_file(folder / "model.safetensors")["w"], torch.full((3, 2), value))
    assert {p.name for p in tmp_path.iterdir()} == {"log.jsonl", "weights"}
    (folder / "gate.json").write_text("{}")
    verify.cache_clear()
    with pytest.raises(UsageError, match=r"gate.json: sha256 is .* expected .* `flgbench pretrain`"):
        verify(folder)


def test_pretraining_a_judge_is_checked_first(flgbench: Flgbench) -> None:
    assert_refused(flgbench("pretrain", "--judge", "vbench"), "--judge vbench", "classifier, clip")
    assert_refused(flgbench("pretrain", "--judge", "clip", "--gates"), "--judge", "--gates")


def _first(factors: shapes.Factors, count: int) -> shapes.Factors:
    return shapes.Factors(**{name: values[:count] for name, values in vars(factors).items()})
