"""Find the part of a labelled detection pool that trains a better detector.

The public API reads what a run has written below its ``OUTPUT_DIR``: :class:`Pool`, :class:`Scores`,
:class:`Selection` and :class:`Manifest`. Attributes are imported on first use, so that ``import detcurate`` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detcurate.version import __version__

if TYPE_CHECKING:
    from detcurate.api import Manifest, Pool, Scores, Selection
    from detcurate.errors import DetcurateError

__all__ = ["DetcurateError", "Manifest", "Pool", "Scores", "Selection", "__version__"]


def __getattr__(name: str) -> object:
    """Import a public class on first use."""
    if name not in __all__:
        raise AttributeError(f"module 'detcurate' has no attribute {name!r}")
    import importlib

    module = "detcurate.errors" if name == "DetcurateError" else "detcurate.api"
    found = getattr(importlib.import_module(module), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
