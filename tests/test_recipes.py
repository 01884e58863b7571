"""Recipes: every value is a setting of its method, names its source, and gives way to what is set beside it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from conftest import Flgbench, assert_refused

from flgbench.loop_settings import LoopSettings
from flgbench.options import run_settings
from flgbench.plan import plan
from flgbench.recipes import TRAINING, Recipe, with_recipe
from flgbench.registry import registry, resolve
from flgbench.run_settings import RunSettings
from flgbench.runs import run_name
from flgbench.settings import Settings
from flgbench.sweeps import nested

NAMES = registry("recipes").names()


def recipe(name: str) -> Recipe:
    return registry("recipes").get(name)()


def run_of(name: str) -> RunSettings:
    """Euler and the recipe's methods at tiny scale: it is another scale's, but its settings are settings anywhere."""
    return run_settings(",".join(recipe(name).methods()), "euler", "wanx", "tiny", None, recipe=name)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_a_setting_that_reaches_the_plan(name: str) -> None:
    """`plan` validates methods' settings and the loop's; each value then stands in a step of the plan."""
    found: list[tuple[str, Any]] = []
    for step in plan(run_of(name), {}).steps.values():
        if step.kind == "train":
            found += values_of(resolve(step.settings["stage"]).Settings.model_validate(step.settings["settings"]))
            found += values_of(LoopSettings.model_validate(step.settings.get("loop", {})))
    for path, (value, _) in recipe(name).values.items():
        last = "iterations" if path.startswith(f"{TRAINING}.iterations.") else path.rpartition(".")[2]
        assert (last, value) in found, path


def values_of(settings: Settings) -> list[tuple[str, Any]]:
    """Of all fields, those of settings inside settings too."""
    told: list[tuple[str, Any]] = []
    for field, value in settings:
        told += values_of(value) if isinstance(value, Settings) else [(field, value)]
    return told


@pytest.mark.parametrize("name", NAMES)
def test_every_value_names_its_source(name: str) -> None:
    found = recipe(name)
    assert found.values and found.gpus >= 1
    for path, (_, source) in found.values.items():
        assert source.startswith("INFERRED: ") or source.endswith(("[P]", "[S]")), path
    # A batch is shared out evenly.
    assert found.values["training.batch"][0] % found.gpus == 0


def test_the_papers_iterations() -> None:
    """2603.01685: 4,000 iterations of stage II at 1e-5, 1,000 of stage III at 5e-7, on 16 GPUs."""
    steps = {s.name: s.settings for s in plan(run_of("fastlightgen-paper"), {}).steps.values() if s.kind == "train"}
    assert (steps["recover"]["loop"]["iterations"], steps["recover"]["settings"]["lr"]) == (4000, 1e-5)
    assert (steps["match"]["loop"]["iterations"], steps["match"]["settings"]["lr"]) == (1000, 5e-7)
    assert recipe("fastlightgen-paper").gpus == 16


def test_what_is_set_goes_over_the_recipe() -> None:
    name = "dmd2-self-forcing-plus"
    given = ["dmd2.lr=3e-6", "training.batch=32", "training.iterations=10"]
    settings = run_settings("dmd2", "euler", "wanx", "tiny", given, recipe=name)
    assert settings.method_settings["dmd2"]["lr"] == 3e-6 and settings.method_settings["dmd2"]["fake_lr"] == 4e-7
    assert settings.training["batch"] == 32 and settings.training["iterations"] == 10
    assert settings.training["sized"] == {"ema_decay": 0.99, "ema_from": 200}
    budget = run_settings("dmd2", "euler", "wanx", "tiny", None, recipe=name, budget=500.0)
    assert "iterations" not in budget.training and budget.budget == 500


def test_a_recipe_leaves_other_methods_alone() -> None:
    given = with_recipe("x", recipe("dmd2-wanx-lora"), ["lcm", "dmd2"], {"lcm": {"keep": 0.7}}, None)
    assert given["lcm"] == {"keep": 0.7} and given["dmd2"]["critic"] == "lora"
    assert given.keys() == {"lcm", "dmd2", TRAINING}


def test_a_recipe_for_none_of_the_methods(flgbench: Flgbench) -> None:
    refused = flgbench("plan", "--methods", "lcm", "--recipe", "fastlightgen-paper")
    assert_refused(refused, "fastlightgen-paper", "is for fastlightgen", "--methods")


def test_an_unknown_recipe_and_training_settings_that_are_none(flgbench: Flgbench) -> None:
    assert_refused(flgbench("plan", "--recipe", "fastlightgen-papr"), "did you mean 'fastlightgen-paper'")
    assert_refused(flgbench("plan", "--set", "training.batsh=4"), "training has no setting 'batsh'", "batch")
    assert_refused(flgbench("plan", "--set", "training.seed=4"), "training.seed: use --seed")
    assert_refused(flgbench("plan", "--set", "training.sized.ofload=true"), "ofload")


def test_a_recipe_of_another_scale_says_so(flgbench: Flgbench) -> None:
    code, out, err = flgbench("plan", "--methods", "dmd2", "--recipe", "dmd2-fastvideo-5b")
    assert code == 0 and "of scale 5b" in err and " match " in out


def test_list_recipes_shows_values_and_sources_without_torch() -> None:
    code = (
        "import sys; from flgbench import cli\n"
        "sys.argv = ['flgbench', 'list', 'recipes']\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        assert f"\n{name} " in "\n" + done.stdout
    assert "fastlightgen.recover.lr=1e-05  2603.01685 [S]" in done.stdout


def test_settings_that_came_later_do_not_change_old_keys() -> None:
    """Neither a run's name nor a step's: while they are unset, dumps do not have them."""
    settings = RunSettings(methods=("dmd2",), baselines=("euler",))
    assert not {"training", "recipe"} & settings.model_dump().keys()
    assert run_name(settings) == run_name(RunSettings.model_validate(settings.model_dump()))
    (step,) = (s for s in plan(settings, {}).steps.values() if s.kind == "train")
    assert not {"critic", "critic_rank"} & step.settings["settings"].keys()
    assert not {"iterations", "sized"} & step.settings["loop"].keys()
    changed = settings.model_copy(update={"method_settings": nested({"dmd2.critic": "lora"}), "training": {"sized": {}}})
    (other,) = (s for s in plan(changed, {}).steps.values() if s.kind == "train")
    assert other.settings["settings"]["critic"] == "lora" and other.settings["loop"]["sized"]["precision"] == "bf16"
