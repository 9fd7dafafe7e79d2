"""Whether Detectron2 is there, and how to get it where it is not."""

from __future__ import annotations

import importlib.util

from detcurate.errors import EnsembleError

HOW_TO_INSTALL = (
    "run `make setup` in a checkout of detcurate, or install torch and torchvision and then the official build: "
    "pip install 'git+https://github.com/facebookresearch/detectron2.git'"
)


def has_detectron2() -> bool:
    """Tell whether Detectron2, torch and torchvision are installed, without importing them."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "torchvision", "detectron2"))


def require_detectron2(purpose: str) -> None:
    """Raise ``EnsembleError`` when Detectron2 is absent.

    Args:
        purpose: What needs it, such as ``"the stage 'train'"``.
    """
    if not has_detectron2():
        raise EnsembleError(f"{purpose} needs Detectron2, which is not installed; {HOW_TO_INSTALL}")
