"""What a member's weights are stored as: cast, copied to the CPU, and finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from detcurate.errors import EnsembleError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def stored(state: Mapping[str, torch.Tensor], storage: str) -> dict[str, torch.Tensor]:
    """Return copies on the CPU that share no memory, floating-point tensors cast; integers stay as they are.

    Loading casts back: ``load_state_dict`` copies into the model's own tensors.
    """
    copied = {"device": "cpu", "copy": True, "memory_format": torch.contiguous_format}
    return {
        name: tensor.detach().to(dtype=DTYPES[storage] if tensor.is_floating_point() else tensor.dtype, **copied)
        for name, tensor in state.items()
    }


def require_finite(
    tensors: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], storage: str, what: str, advice: str
) -> None:
    """Raise ``EnsembleError`` for the first tensor that is not finite.

    Args:
        tensors: As stored.
        state: As they were.
        storage: Its name.
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
            f"{what} must be within the range of {storage}, got {float(original.abs().max()):g} in {name}; "
            "set CURATE.ENSEMBLE.STORAGE bf16 or fp32"
        )
