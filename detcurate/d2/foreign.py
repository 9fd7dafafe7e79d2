"""Checkpoints of trainings that were not ours: read safely, and held against the config's model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from detectron2.modeling import build_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from detcurate.d2 import backbones  # noqa: F401  registers the small backbone
from detcurate.d2.archives import require_no_growth
from detcurate.d2.config import load_config_text
from detcurate.d2.storage import require_finite, stored
from detcurate.errors import EnsembleError

Tensors = Mapping[str, torch.Tensor]

# Constants that older versions of Detectron2 saved with the weights.
_NO_WEIGHTS = re.compile(r"(^|\.)(pixel_mean|pixel_std|cell_anchors\.\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a file.

    Args:
        path: The file.
        iteration: From 0; -1 when neither the file nor its name says it.
        tensors: By name.
    """

    path: Path
    iteration: int
    tensors: Tensors


def read_checkpoint(path: Path, *, allow_pickle: bool) -> Checkpoint:
    """Read a checkpoint of Detectron2, ``{"model": …, "iteration": …}``, or a bare state.

    Args:
        path: A ``.pth`` file, or ``.safetensors``.
        allow_pickle: Whether it may be unpickled, which can run code.

    Raises:
        EnsembleError: It is damaged, holds no weights, or would run code and that is not allowed.
    """
    content = _load(path) if path.suffix == ".safetensors" else _unpickle(path, allow_pickle)
    iteration: Any = None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        iteration, content = content.get("iteration"), content["model"]
    if not isinstance(content, Mapping) or not content:
        raise EnsembleError(f"a checkpoint must hold weights by name, got {type(content).__name__} ({path})")
    tensors = {}
    for name, value in content.items():
        try:
            tensor = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise EnsembleError(
                f"a checkpoint must hold tensors by name, got {name} of type {type(value).__name__} ({path})"
            ) from None
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise EnsembleError(f"a checkpoint must hold plain tensors, got {name} of another kind ({path})")
        tensors[str(name).removeprefix("module.")] = tensor  # saved from within a DistributedDataParallel
    if not isinstance(iteration, int):
        named = re.search(r"_(\d+)$", path.stem)
        iteration = int(named.group(1)) if named else -1
    return Checkpoint(path, iteration, tensors)


def _load(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise EnsembleError(f"a checkpoint must be a whole .safetensors file, got {error} ({path})") from error


def _unpickle(path: Path, allow_pickle: bool) -> Any:
    try:
        require_no_growth(path)
        with warnings.catch_warnings():  # an old or strange format: read or refused below, there is no third
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except UnpicklingError as error:
        if allow_pickle:
            raise EnsembleError(f"a checkpoint must be readable, got {error} ({path})") from error
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error).splitlines()[0])
        raise EnsembleError(
            f"a checkpoint must hold tensors and plain values alone, got a pickle that could run code ({path}: "
            f"{reason.strip()}); end your command with CURATE.TRAIN.ALLOW_PICKLE True if you trust its maker"
        ) from error
    except Exception as error:  # broken bytes make the reader raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EnsembleError(f"a checkpoint must be a whole file, got {reason} ({path})") from error


def model_state(config: str) -> dict[str, torch.Tensor]:
    """Return the state of a config's model, by building it once on the CPU."""
    cfg = load_config_text(config).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    return dict(build_model(cfg).state_dict())


def require_same_model(checkpoint: Checkpoint, expected: Tensors) -> None:
    """Raise ``EnsembleError`` for the first tensor, in the model's order, that the checkpoint has otherwise."""
    advice = "give the config that it was trained with; the number of classes is the pool's"
    for name, tensor in expected.items():
        found = checkpoint.tensors.get(name)
        shape = tuple(tensor.shape)
        if found is None:
            raise EnsembleError(
                f"a member must hold the weights of the config's model, got no tensor {name} where the model has "
                f"{shape} ({checkpoint.path}); {advice}"
            )
        if tuple(found.shape) != shape:
            raise EnsembleError(
                f"a member must hold the weights of the config's model, got {name} of shape {tuple(found.shape)} where "
                f"the model has {shape} ({checkpoint.path}); {advice}"
            )
    for name, tensor in checkpoint.tensors.items():
        if name not in expected and not _NO_WEIGHTS.search(name):
            raise EnsembleError(
                f"a member must hold the weights of the config's model, got {name} of shape {tuple(tensor.shape)} "
                f"where the model has none ({checkpoint.path}); {advice}"
            )


def write_checkpoint(checkpoint: Checkpoint, expected: Tensors, path: Path, storage: str) -> None:
    """Write the model's weights from a checkpoint as a member.

    Raises:
        EnsembleError: A weight is not finite.
    """
    state = {name: checkpoint.tensors[name] for name in expected}
    tensors = stored(state, storage)
    require_finite(tensors, state, storage, f"the weights of {checkpoint.path}", "take that file out of the folder")
    save_file(tensors, path)
