"""The three ways to ask an ensemble, and which detectors each is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from detcurate.d2.checkpoints import model_of
from detcurate.d2.infer.dense import require_dense
from detcurate.d2.infer.reference import require_two_stage

_REQUIREMENTS: Mapping[str, Callable[[nn.Module], None]] = {
    "cluster": lambda model: None,
    "reference": require_two_stage,
    "dense": require_dense,
}


def require_detector(config: str, mode: str) -> None:
    """Raise ``EnsembleError`` unless the detector of a config (``cfg.dump()``) can be asked in a mode."""
    _REQUIREMENTS[mode](model_of(config))
