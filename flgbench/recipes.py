"""Recipes: settings that others have published, under one name, each value with its source. Without torch.

A recipe is registered in the group `flgbench.recipes`: a function that returns a `Recipe`. What a run sets itself
(`--set`, `--budget`) goes over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flgbench.errors import UsageError
from flgbench.sweeps import merged, nested

TRAINING = "training"  # stands where a method's name does, for settings of the training loop


@dataclass(frozen=True)
class Recipe:
    """`values`: METHOD.SETTING or training.SETTING -> (value, source). A source ends in the mark of methods.md, [P] for
    first-hand and [S] for second-hand, or begins with INFERRED. `scale` and `gpus`: where it was used. `budget`: network
    passes, where the stages that have no iterations need more than a run's default."""

    scale: str
    gpus: int
    values: Mapping[str, tuple[Any, str]]
    budget: float | None = None

    def settings(self) -> dict[str, dict[str, Any]]:
        """By method, or `training`, as `--set` would give them."""
        return nested({path: value for path, (value, _) in self.values.items()})

    def methods(self) -> list[str]:
        return [owner for owner in self.settings() if owner != TRAINING]


def with_recipe(
    name: str, recipe: Recipe, methods: Sequence[str], given: Mapping[str, Any], budget: float | None
) -> dict[str, Any]:
    """`given` over the recipe's settings for those of `methods` that it is for. A `budget` takes the place of iterations.

    Raises UsageError where it is for none of them.
    """
    chosen = recipe.settings()
    fitting = [method for method in recipe.methods() if method in methods]
    if not fitting:
        raise UsageError(f"--recipe {name} is for {', '.join(recipe.methods())}: give it with --methods")
    own = {owner: chosen[owner] for owner in (*fitting, TRAINING) if owner in chosen}
    if budget is not None and TRAINING in own:
        own[TRAINING] = {k: v for k, v in own[TRAINING].items() if k != "iterations"}
    return merged(own, given)


def lines(recipe: Recipe) -> list[str]:
    """Each value with its source."""
    return [f"{path}={value}  {source}" for path, (value, source) in recipe.values.items()]
