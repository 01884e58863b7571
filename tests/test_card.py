"""The evaluation card: it tells what a number rests on, and different cards are not compared."""

from __future__ import annotations

import pytest
import torch
from test_claims import CELLS, coins, make_run
from torch.nn.attention import SDPBackend, sdpa_kernel

from flgbench.card import attention_backend, card, conditions_hash
from flgbench.models.wanx import WanX
from flgbench.sampling import SamplerSettings
from flgbench.stage import TrainingData
from reports.claims import quality_is_kept
from reports.verdicts import MUST_AGREE, differences, verdict

IMAGES = torch.arange(2 * 8 * 8 * 3, dtype=torch.uint8).view(2, 8, 8, 3)


def make(captions: tuple[str, ...] = ("a", "b"), sampler: SamplerSettings | None = None) -> dict:
    return card(IMAGES, captions, 4, sampler, 8, "flash, CPU")


def test_it_tells_what_the_number_rests_on() -> None:
    told = make(sampler=SamplerSettings(num_inference_steps=4, guidance_scale=5.0))
    assert set(MUST_AGREE) < set(told)
    assert (told["NFE"], told["shift"], told["guidance_scale"], told["clips"]) == (8, 3.0, 5.0, 4)
    assert {"threads", "gpu", "commit", "flgbench"} < set(told)


def test_the_hash_sees_images_and_captions() -> None:
    base = conditions_hash(IMAGES, ["a", "b"])
    assert base == conditions_hash(IMAGES.clone(), ("a", "b")) != conditions_hash(IMAGES, ["a", "c"])
    other = IMAGES.clone()
    other[1, 7, 7, 2] += 1
    assert conditions_hash(other, ["a", "b"]) != base


def test_the_attention_that_is_really_used(tiny_model: WanX, tiny_data: TrainingData) -> None:
    assert attention_backend(tiny_model, tiny_data.condition) == "flash, CPU"
    with sdpa_kernel(SDPBackend.MATH):
        assert attention_backend(tiny_model, tiny_data.condition) == "math"


@pytest.mark.parametrize("field", MUST_AGREE)
def test_different_cards_are_not_compared(field: str) -> None:
    told = make()
    cells = [c.model_copy(update={"card": told}) for c in CELLS]
    cells[1] = cells[1].model_copy(update={"card": told | {field: "another"}})
    assert differences(cells[1], cells[0]) == [f"{field}: another and {told[field]}"]
    run = make_run({"euler": coins(0.8, 200), "fastlightgen": coins(0.2, 200)}, cells=tuple(cells))
    found = verdict(run, cells[1])
    assert found.answer == "undecided" and field in found.why
    (claim,) = quality_is_kept(run)
    assert claim.verdict == "undecided" and field in claim.decides


def test_what_is_not_told_forbids_nothing() -> None:
    told = make()
    alike = [c.model_copy(update={"card": told | {"attention": ""} if i else told}) for i, c in enumerate(CELLS)]
    assert not differences(alike[1], alike[0])
    run = make_run({"euler": coins(0.8, 200), "fastlightgen": coins(0.2, 200)}, cells=tuple(alike))
    assert verdict(run, alike[1]).answer == "below"
