"""The procedural clips: reproducible, with known laws, and hidden factors that really are hidden."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from flgbench.data import shapes
from flgbench.data.captions import SYNONYMS, captions_of, vocabulary

DRAWS = 4000
HIDDEN = ("turn", "side", "entry", "shape2")
TOLD = {
    "shape": shapes.SHAPES,
    "size": shapes.SIZES,
    "speed": shapes.SPEEDS,
    "direction": shapes.DIRECTIONS,
    "background": shapes.BACKGROUNDS,
}


@pytest.fixture(scope="module")
def many() -> shapes.Factors:
    return shapes.draw_factors("train", np.arange(DRAWS))


@pytest.fixture(scope="module")
def few() -> shapes.Factors:
    return shapes.draw_factors("test", np.arange(24))


def as_dict(factors: shapes.Factors) -> dict[str, np.ndarray]:
    return {f.name: getattr(factors, f.name) for f in fields(factors)}


def other_hidden(factors: shapes.Factors) -> shapes.Factors:
    """The same clips with every hidden factor changed."""
    return replace(
        factors,
        turn=(factors.turn + 1) % 4,
        side=(factors.side + 1) % 4,
        entry=(factors.entry + 1) % 3,
        shape2=(factors.shape2 + 1) % 4,
        colour2=(factors.colour2 + 1 + ((factors.colour2 + 1) % 8 == factors.colour)) % 8,
        offset2=shapes.SIZE - factors.offset2,
    )


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.sampled_from(sorted(shapes.SPLITS)))
@settings(max_examples=50, deadline=None)
def test_factors_depend_on_split_and_index_alone(indices: list[int], split: str) -> None:
    together = as_dict(shapes.draw_factors(split, indices))
    for position, index in enumerate(indices):
        alone = as_dict(shapes.draw_factors(split, [index]))
        assert all(np.array_equal(together[k][position], alone[k][0]) for k in alone)


def test_videos_depend_on_split_and_index_alone() -> None:
    order = [5, 0, 17, 3]
    together = shapes.render(shapes.draw_factors("train", order))
    assert together.dtype == torch.uint8 and together.shape == (4, 17, 64, 64, 3)
    for position, index in enumerate(order):
        assert torch.equal(together[position], shapes.render(shapes.draw_factors("train", [index]))[0])


def test_global_random_state_is_neither_read_nor_moved() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    first = shapes.render(shapes.draw_factors("train", [1]))
    assert np.random.rand() == np.random.RandomState(0).rand()
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(first, shapes.render(shapes.draw_factors("train", [1])))


def test_splits_differ() -> None:
    starts = [shapes.draw_factors(split, np.arange(200)).start for split in shapes.SPLITS]
    assert len(np.unique(np.concatenate(starts), axis=0)) == 200 * len(shapes.SPLITS)
    with pytest.raises(KeyError):
        shapes.draw_factors("trian", [0])


def test_held_out_pairs_are_in_no_other_split() -> None:
    def pairs(split: str) -> set[tuple[int, int]]:
        f = shapes.draw_factors(split, np.arange(DRAWS))
        return set(zip(f.shape.tolist(), f.colour.tolist(), strict=True))

    held_out = pairs("held_out")
    assert len(held_out) == 4
    for split in ("train", "validation", "test"):
        assert pairs(split).isdisjoint(held_out)
        assert len(pairs(split)) == 4 * 7  # and every other combination is there


@pytest.mark.parametrize("factor", HIDDEN)
def test_hidden_factors_follow_their_law(factor: str, many: shapes.Factors) -> None:
    """The draws are fixed, so the 1e-3 level cannot fail by chance from run to run."""
    law = np.array(shapes.LAWS[factor])
    assert chisquare(np.bincount(getattr(many, factor), minlength=len(law)), law * DRAWS).pvalue > 1e-3


def test_second_colour_is_uniform_over_the_seven_others(many: shapes.Factors) -> None:
    distance = (many.colour2 - many.colour) % 8
    assert (distance > 0).all()
    assert chisquare(np.bincount(distance, minlength=8)[1:]).pvalue > 1e-3


@pytest.mark.parametrize("factor", HIDDEN)
def test_hidden_factors_are_independent_of_what_is_told(factor: str, many: shapes.Factors) -> None:
    """Of every caption factor, and of where the object starts: a quadrant that predicts the turn would be a leak."""
    quadrant = (many.start > 32) @ np.array([1, 2])
    for told in (many.shape, many.colour, many.size, many.direction, many.speed, many.background, quadrant):
        table = np.zeros((told.max() + 1, getattr(many, factor).max() + 1))
        np.add.at(table, (told, getattr(many, factor)), 1)
        assert chi2_contingency(table).pvalue > 1e-4


def test_first_frame_shows_no_trace_of_hidden_factors(few: shapes.Factors) -> None:
    changed = other_hidden(few)
    assert all((getattr(changed, f) != getattr(few, f)).all() for f in (*HIDDEN, "colour2"))
    video, other = shapes.render(few), shapes.render(changed)
    assert torch.equal(video[:, 0], other[:, 0])
    assert (video[:, -1] != other[:, -1]).flatten(1).any(1).all()  # while they do decide how the clip goes on


def test_mask_centroids_are_the_trajectory(few: shapes.Factors) -> None:
    main, _ = shapes.masks(few)
    centres = torch.arange(64) + 0.5
    area = main.sum((2, 3))
    x, y = (main.sum(2) * centres).sum(-1) / area, (main.sum(3) * centres).sum(-1) / area
    np.testing.assert_allclose(torch.stack([x, y], -1), shapes.trajectory(few), atol=0.05)


def test_second_mask_is_where_its_trajectory_says() -> None:
    """Where nothing hides or cuts it: centroid exact, area that of a small sprite."""
    few = shapes.draw_factors("train", np.arange(60))
    _, second = shapes.masks(few)
    path = shapes.trajectory2(few)
    whole = shapes.atlas()[few.shape2, 0, 0, 0].sum((1, 2))[:, None]
    seen = np.isclose(second.sum((2, 3)), whole, rtol=0.01) & (np.abs(path - 32).max(-1) < 24)
    assert seen.any(1).sum() > 20
    centres = torch.arange(64) + 0.5
    x = (second.sum(2) * centres).sum(-1) / second.sum((2, 3))
    y = (second.sum(3) * centres).sum(-1) / second.sum((2, 3))
    np.testing.assert_allclose(torch.stack([x, y], -1)[torch.from_numpy(seen)], path[seen], atol=0.1)


def test_main_object_stays_whole_in_the_frame(few: shapes.Factors, many: shapes.Factors) -> None:
    radius = 1.45 * np.array(shapes.RADII)[many.size][:, None, None]
    for turn in range(4):  # whatever the turn, or the first frame would tell which turns are possible
        path = shapes.trajectory(replace(many, turn=np.full(DRAWS, turn)))
        assert (path - radius >= 0).all() and (path + radius <= 64).all()
    main, _ = shapes.masks(few)
    whole = shapes.atlas()[few.shape, few.size, 0, 0].sum((1, 2))[:, None].expand(-1, 17)
    torch.testing.assert_close(main.sum((2, 3)), whole, rtol=0.01, atol=0)


def test_the_two_objects_seldom_touch(many: shapes.Factors) -> None:
    """Nearer than the sum of their radii at any time; and the second one's whole path lies inside, border lanes or not."""
    apart = np.linalg.norm(shapes.trajectory(many) - shapes.trajectory2(many), axis=-1)
    touch = apart < np.array(shapes.RADII)[many.size][:, None] + shapes.RADII[0]
    assert touch.any(1).mean() < 0.04
    radius = 1.45 * shapes.RADII[0]
    assert (many.offset2 > radius).all() and (many.offset2 < shapes.SIZE - radius).all()


def test_masks_are_what_is_drawn(few: shapes.Factors) -> None:
    """Full coverage has the object's colour, no coverage the background's (that of the first frame's rest)."""
    video, (main, second) = shapes.render(few), shapes.masks(few)
    palette = torch.from_numpy(shapes.PALETTE)[torch.from_numpy(few.colour)].to(torch.uint8)
    inside = (main == 1).nonzero(as_tuple=True)
    assert torch.equal(video[inside], palette[inside[0]])
    nothing = ((main == 0) & (second == 0)).nonzero(as_tuple=True)
    background = shapes.backgrounds(few).round().to(torch.uint8)
    assert torch.equal(video[nothing], background[nothing[0], nothing[2], nothing[3]])


def named(caption: str, factor: str) -> set[str]:
    """Values of `factor` that the caption names; of nested phrases ('down' in 'down and left') only the longest."""
    padded = f" {caption} "
    found = {w: value for value in TOLD[factor] for w in SYNONYMS[value] if f" {w} " in padded}
    return {value for w, value in found.items() if not any(w != v and f" {w} " in f" {v} " for v in found)}


def test_captions_tell_everything_but_what_is_hidden() -> None:
    some = shapes.draw_factors("train", np.arange(300))
    for n, caption in enumerate(captions_of(some)):
        for factor, names in TOLD.items():
            assert named(caption, factor) == {names[getattr(some, factor)[n]]}, caption
        assert set(shapes.COLOURS) & set(caption.split()) == {shapes.COLOURS[some.colour[n]]}, caption
    assert captions_of(other_hidden(some)) == captions_of(some)


def test_captions_vary_and_stay_in_the_vocabulary(many: shapes.Factors) -> None:
    lines = captions_of(many)
    used = {word for line in lines for word in line.split()}
    assert used == set(vocabulary())  # no word is unknown to the tokenizer, and none is there for nothing
    assert len(set(lines)) > 0.9 * DRAWS
    assert max(len(line.split()) for line in lines) <= 19  # and the end token fits into 20
