"""Checkpoints and initial weights: safe loading of untrusted files, and comparison with the config's model."""

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
from detcurate.d2.archives import require_no_growth, require_only_arrays
from detcurate.errors import ConfigError, EnsembleError

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def stored(state: Mapping[str, torch.Tensor], dtype: str) -> dict[str, torch.Tensor]:
    """Return copies on the CPU that share no memory, with floating-point tensors cast to ``dtype``.

    Other tensors keep their dtype. Loading casts back: ``load_state_dict`` copies into the model's own tensors.
    """
    copied = {"device": "cpu", "copy": True, "memory_format": torch.contiguous_format}
    return {
        name: tensor.detach().to(dtype=TORCH_DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype, **copied)
        for name, tensor in state.items()
    }


def require_finite(
    tensors: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], dtype: str, subject: str, advice: str
) -> None:
    """Raise ``EnsembleError`` for the first tensor that is not finite.

    Args:
        tensors: The cast tensors.
        state: The tensors before the cast.
        dtype: The name of the dtype of the cast.
        subject: Begins the message, such as ``"the weights after iteration 99"``.
        advice: Ends the message if a tensor was not finite before the cast.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            continue
        original = state[name].detach()
        wrong = original[~torch.isfinite(original)]
        if len(wrong):
            raise EnsembleError(
                f"{subject}: not finite (got {float(wrong[0])} in {name}, {len(wrong):,} of {original.numel():,} "
                f"values). {advice}"
            )
        raise EnsembleError(
            f"{subject}: outside the range of {dtype} (got {float(original.abs().max()):g} in {name}). "
            "Set CURATE.ENSEMBLE.DTYPE bf16 or fp32."
        )


Tensors = Mapping[str, torch.Tensor]

# Constants that older versions of Detectron2 save with the weights.
_NO_WEIGHTS = re.compile(r"(^|\.)(pixel_mean|pixel_std|cell_anchors\.\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a file.

    Args:
        path: The file.
        iteration: From 0; -1 if neither the content nor the name of the file holds it.
        tensors: By name.
    """

    path: Path
    iteration: int
    tensors: Tensors


def read_checkpoint(path: Path, *, allow_pickle: bool) -> Checkpoint:
    """Read a checkpoint of Detectron2, ``{"model": …, "iteration": …}``, or a bare state dict.

    Args:
        path: A ``.pth`` or ``.safetensors`` file.
        allow_pickle: Whether to unpickle arbitrary objects, which can run code.

    Raises:
        EnsembleError: The file is damaged, holds no weights, or needs ``allow_pickle``.
    """
    content = _load(path) if path.suffix == ".safetensors" else _unpickle(path, allow_pickle)
    iteration: Any = None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        iteration, content = content.get("iteration"), content["model"]
    if not isinstance(content, Mapping) or not content:
        raise EnsembleError(f"{path}: a checkpoint must map names to tensors (got {type(content).__name__}).")
    tensors = {}
    for name, value in content.items():
        try:
            tensor = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise EnsembleError(
                f"{path}: a checkpoint must map names to tensors (got {name} of type {type(value).__name__})."
            ) from None
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise EnsembleError(
                f"{path}: {name} must be a dense tensor on the CPU (got {tensor.layout}, {tensor.device})."
            )
        tensors[str(name).removeprefix("module.")] = tensor  # saved from within a DistributedDataParallel
    if not isinstance(iteration, int):
        named = re.search(r"_(\d+)$", path.stem)
        iteration = int(named.group(1)) if named else -1
    return Checkpoint(path, iteration, tensors)


def _load(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise EnsembleError(f"{path}: not a complete .safetensors file ({error}).") from error


def _unpickle(path: Path, allow_pickle: bool) -> Any:
    try:
        require_no_growth(path)
        with warnings.catch_warnings():  # of old formats, which are read or rejected below
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except UnpicklingError as error:
        if allow_pickle:
            raise EnsembleError(f"{path}: the checkpoint cannot be read ({error}).") from error
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error).splitlines()[0])
        raise EnsembleError(
            f"{path}: the pickle can run code ({reason.strip()}). Add CURATE.TRAIN.ALLOW_PICKLE True to the command if "
            "you trust the source of the file."
        ) from error
    except Exception as error:  # the reader raises any type of error for broken bytes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EnsembleError(f"{path}: the checkpoint is damaged ({reason}).") from error


def model_state(config: str) -> dict[str, torch.Tensor]:
    """Return the state dict of a config's model, built on the CPU."""
    cfg = load_config_text(config).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    return dict(build_model(cfg).state_dict())


def require_same_model(checkpoint: Checkpoint, expected: Tensors) -> None:
    """Raise ``EnsembleError`` for the first tensor, in the model's order, that differs in the checkpoint."""
    advice = "Use the config of its training, with a pool of the same number of classes."
    for name, tensor in expected.items():
        found = checkpoint.tensors.get(name)
        shape = tuple(tensor.shape)
        if found is None:
            raise EnsembleError(
                f"{checkpoint.path}: the tensor {name} of shape {shape} of the config's model is missing. {advice}"
            )
        if tuple(found.shape) != shape:
            raise EnsembleError(
                f"{checkpoint.path}: {name} must have the shape {shape} of the config's model (got "
                f"{tuple(found.shape)}). {advice}"
            )
    for name, tensor in checkpoint.tensors.items():
        if name not in expected and not _NO_WEIGHTS.search(name):
            raise EnsembleError(f"{checkpoint.path}: unknown tensor {name} of shape {tuple(tensor.shape)}. {advice}")


def write_checkpoint(checkpoint: Checkpoint, expected: Tensors, path: Path, dtype: str) -> None:
    """Write the model's weights from a checkpoint to a member file.

    Raises:
        EnsembleError: A weight is not finite.
    """
    state = {name: checkpoint.tensors[name] for name in expected}
    tensors = stored(state, dtype)
    require_finite(tensors, state, dtype, str(checkpoint.path), "Remove that file from the folder.")
    save_file(tensors, path)


def load_initial_weights(model: nn.Module, weights: str, *, allow_pickle: bool) -> None:
    """Load ``MODEL.WEIGHTS`` into a model without running code from the file.

    Args:
        model: Changed in place; parameters that the file lacks keep their initialization.
        weights: Empty (from scratch), ``.safetensors``, ``.pth``/``.pt`` (tensors only) or ``.pkl`` (arrays only; also
            a URL of Detectron2's model zoo). With ``allow_pickle``, anything that Detectron2's checkpointer reads.
        allow_pickle: Whether to unpickle arbitrary objects, which can run code.

    Raises:
        ConfigError: The file is missing or damaged, has no parameter of the model or one of another shape, or needs
            ``allow_pickle``.
    """
    if not weights:
        return
    path = Path(weights)
    if path.suffix in (".safetensors", ".pth", ".pt"):
        if not path.is_file():
            raise ConfigError(f"MODEL.WEIGHTS: no such file (got {weights}).")
        try:
            state = load_file(path) if path.suffix == ".safetensors" else load_tensors(path)
            state = state.get("model", state)
            unmatched = model.load_state_dict(state, strict=False)
        except Exception as error:
            raise ConfigError(f"MODEL.WEIGHTS: the tensors do not fit the model (got {weights}): {error}") from error
        if not state.keys() & model.state_dict().keys():
            raise ConfigError(f"MODEL.WEIGHTS: the file has no parameter of the model (got {weights}).")
        logging.getLogger("detectron2").info("initial weights from %s: %s", path.name, unmatched)
        return
    if not allow_pickle:
        _require_safe(weights)
    DetectionCheckpointer(model).load(weights)


def _require_safe(weights: str) -> None:
    """Raise ``ConfigError`` unless the weights are a pickle of arrays only, as in Detectron2's model zoo."""
    if weights.endswith(".pkl"):
        try:
            require_only_arrays(Path(PathManager.get_local_path(weights)))
            return
        except ValueError as error:
            reason = f": {error}"
        except Exception as error:  # a download fails in many ways
            raise ConfigError(f"MODEL.WEIGHTS: the file cannot be read (got {weights}): {error}") from error
    else:
        reason = ""
    raise ConfigError(
        f"MODEL.WEIGHTS: loading the file can run code (got {weights}{reason}). Use .safetensors, .pth or a .pkl "
        "of arrays, or add CURATE.TRAIN.ALLOW_PICKLE True to the command if you trust the source of the file."
    )


def model_of(config: str) -> nn.Module:
    """Build a config's model with random weights on the CPU.

    Raises:
        ConfigError: Detectron2 cannot build the model that ``MODEL`` describes.
    """
    cfg = load_config_text(config).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    try:
        return build_model(cfg)
    except Exception as error:  # e.g. a KeyError for an unknown name, an AssertionError for a wrong size
        reason = str(error.args[0] if isinstance(error, KeyError) else error).split("\n")[0] or type(error).__name__
        raise ConfigError(
            f"MODEL: Detectron2 cannot build the detector (got {cfg.MODEL.META_ARCHITECTURE} with "
            f"{cfg.MODEL.BACKBONE.NAME}): {reason}. Fix MODEL.*, or derive the config from one in configs/."
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
        raise EnsembleError(
            f"{weights}: the member does not hold the weights of the config's model: {error}"
        ) from error
    return model.eval()


def load_tensors(path: Path) -> dict[str, Any]:
    """Load tensors and plain values; raises for a pickle that can run code and for an archive that expands."""
    require_no_growth(path)
    return torch.load(path, map_location="cpu", weights_only=True)
