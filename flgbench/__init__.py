"""flgbench: how much faster can an image+text-to-video diffusion transformer become, by which method, at what loss?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Results", "load_student", "results", "run"]

if TYPE_CHECKING:
    from flgbench.api import Results, load_student, results, run


def __getattr__(name: str) -> Any:
    """The Python interface (`flgbench.api`), imported when it is first used."""
    if name in __all__:
        from flgbench import api

        return getattr(api, name)
    raise AttributeError(f"module 'flgbench' has no attribute '{name}'")
