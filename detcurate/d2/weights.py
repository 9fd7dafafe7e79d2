"""Weights: read safely into models."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from safetensors.torch import load_file
from torch import nn

from detcurate.d2 import backbones  # noqa: F401  registers the small backbone
from detcurate.d2.archives import require_arrays_alone, require_no_growth
from detcurate.d2.config import load_config_text
from detcurate.errors import ConfigError, EnsembleError


def load_initial_weights(model: nn.Module, weights: str, *, allow_pickle: bool) -> None:
    """Load ``MODEL.WEIGHTS`` into a model, safely.

    Args:
        model: Changed in place; parameters that the file lacks keep their initialization.
        weights: Empty (from scratch), ``.safetensors``, ``.pth``/``.pt`` (tensors only), ``.pkl`` (arrays only; a URL
            as Detectron2 has them, too), or anything else that its checkpointer reads, with ``allow_pickle``.
        allow_pickle: Whether a file may be unpickled, which can run code.

    Raises:
        ConfigError: The file is missing or damaged, fits the model nowhere, has a parameter of another shape, or is a
            pickle and that is not allowed.
    """
    if not weights:
        return
    path = Path(weights)
    if path.suffix in (".safetensors", ".pth", ".pt"):
        if not path.is_file():
            raise ConfigError(f"MODEL.WEIGHTS must name an existing file, got {weights}")
        try:
            state = load_file(path) if path.suffix == ".safetensors" else load_tensors(path)
            state = state.get("model", state)
            unmatched = model.load_state_dict(state, strict=False)
        except Exception as error:
            raise ConfigError(f"MODEL.WEIGHTS must hold tensors that fit the model ({weights}): {error}") from error
        if not state.keys() & model.state_dict().keys():
            raise ConfigError(f"MODEL.WEIGHTS must name parameters of the model, got none of them ({weights})")
        logging.getLogger("detectron2").info("initial weights from %s: %s", path.name, unmatched)
        return
    if not allow_pickle:
        _require_harmless(weights)
    DetectionCheckpointer(model).load(weights)


def _require_harmless(weights: str) -> None:
    """Raise ``ConfigError`` unless the weights are a pickle of arrays alone, as Detectron2's makers give out."""
    if weights.endswith(".pkl"):
        try:
            require_arrays_alone(Path(PathManager.get_local_path(weights)))
            return
        except ValueError as error:
            reason = f": {error}"
        except Exception as error:  # a download fails in many ways
            raise ConfigError(f"MODEL.WEIGHTS must be readable, got {error} ({weights})") from error
    else:
        reason = ""
    raise ConfigError(
        f"MODEL.WEIGHTS must be .safetensors, .pth or a .pkl of arrays alone, got {weights}{reason}; it would be "
        "unpickled, which can run code: end your command with CURATE.TRAIN.ALLOW_PICKLE True if you trust its maker"
    )


def model_of(config: str) -> nn.Module:
    """Build a config's model on the CPU, for what can be told from it without weights.

    Raises:
        ConfigError: ``MODEL`` describes none that Detectron2 can build.
    """
    cfg = load_config_text(config).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    try:
        return build_model(cfg)
    except Exception as error:  # an unknown name is a KeyError, a size that does not fit an assertion, and so on
        reason = str(error.args[0] if isinstance(error, KeyError) else error).split("\n")[0] or type(error).__name__
        raise ConfigError(
            f"MODEL must describe a detector that Detectron2 builds, got {cfg.MODEL.META_ARCHITECTURE} on "
            f"{cfg.MODEL.BACKBONE.NAME}: {reason}; mend MODEL.*, or derive your config from one in configs/"
        ) from error


def model_bytes(config: str) -> int:
    """Return the size in bytes of the weights of a config's model."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model_of(config).state_dict().values())


def model_for_weights(cfg: CfgNode, weights: Path) -> nn.Module:
    """Build the config's model with a member's weights, ready for inference."""
    model = build_model(cfg)
    try:
        model.load_state_dict(load_file(weights))
    except Exception as error:
        raise EnsembleError(f"a member must hold the weights of the config's model ({weights}): {error}") from error
    return model.eval()


def load_tensors(path: Path) -> dict[str, Any]:
    """Load tensors and plain values; a pickle that would run code is refused, and so is an archive that grows."""
    require_no_growth(path)
    return torch.load(path, map_location="cpu", weights_only=True)
