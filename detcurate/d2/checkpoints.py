"""Checkpoints of trainings that were not ours: read safely, and held against the config's model."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from detcurate.config.declaration import load_config_text
from detcurate.d2 import registration  # noqa: F401  registers the small backbone
from detcurate.d2.archives import require_arrays_alone, require_no_growth
from detcurate.errors import ConfigError, EnsembleError

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def stored(state: Mapping[str, torch.Tensor], dtype: str) -> dict[str, torch.Tensor]:
    """Return copies on the CPU that share no memory, floating-point tensors cast; integers stay as they are.

    Loading casts back: ``load_state_dict`` copies into the model's own tensors.
    """
    copied = {"device": "cpu", "copy": True, "memory_format": torch.contiguous_format}
    return {
        name: tensor.detach().to(dtype=TORCH_DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype, **copied)
        for name, tensor in state.items()
    }


def require_finite(
    tensors: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], dtype: str, what: str, advice: str
) -> None:
    """Raise ``EnsembleError`` for the first tensor that is not finite.

    Args:
        tensors: As stored.
        state: As they were.
        dtype: Its name.
        what: Begins the message, such as ``"the weights after iteration 99"``.
        advice: Ends it, when they were not finite before they were cast.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            continue
        original = state[name].detach()
        wrong = original[~torch.isfinite(original)]
        if len(wrong):
            raise EnsembleError(
                f"{what} must be finite, got {float(wrong[0])} in {name} ({len(wrong):,} of {original.numel():,} "
                f"numbers); {advice}"
            )
        raise EnsembleError(
            f"{what} must be within the range of {dtype}, got {float(original.abs().max()):g} in {name}; "
            "set CURATE.ENSEMBLE.STORAGE bf16 or fp32"
        )


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


def write_checkpoint(checkpoint: Checkpoint, expected: Tensors, path: Path, dtype: str) -> None:
    """Write the model's weights from a checkpoint as a member.

    Raises:
        EnsembleError: A weight is not finite.
    """
    state = {name: checkpoint.tensors[name] for name in expected}
    tensors = stored(state, dtype)
    require_finite(tensors, state, dtype, f"the weights of {checkpoint.path}", "take that file out of the folder")
    save_file(tensors, path)


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
