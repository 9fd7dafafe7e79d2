"""The part of the network that is the same in all members, run once for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.modeling.backbone.resnet import ResNet
from safetensors import safe_open
from torch import nn

_PREFIX = "backbone.bottom_up."


def count_shared_blocks(model: nn.Module, members: Sequence[Path]) -> int:
    """Return how many leading blocks of the backbone (stem, res2, …) hold the same tensors in all members.

    Below ``MODEL.BACKBONE.FREEZE_AT`` they do, when the runs start from the same weights; that is found out by
    comparing the tensors, not by the setting. 0 for one member, and for a backbone that is not Detectron2's ResNet.

    Args:
        model: A model of the members' architecture.
        members: The members' safetensors files.
    """
    bottom_up = getattr(getattr(model, "backbone", None), "bottom_up", None)
    if type(bottom_up) is not ResNet or len(members) < 2:
        return 0
    for count, name in enumerate(_block_names(bottom_up)):
        reference = _block_tensors(members[0], name)
        if not all(_are_equal(reference, _block_tensors(path, name)) for path in members[1:]):
            return count
    return len(_block_names(bottom_up))


class SharedTrunk:
    """Runs the leading blocks of one model, and remembers the result for the last input.

    Args:
        model: Whose blocks are run.
        num_blocks: How many, at least 1.
    """

    def __init__(self, model: nn.Module, num_blocks: int) -> None:
        bottom_up = model.backbone.bottom_up
        self.names = _block_names(bottom_up)[:num_blocks]
        self._blocks = [getattr(bottom_up, name) for name in self.names]
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the output of each shared block."""
        if self._input is not x:
            self.forget()
            output, outputs = x, []
            for block in self._blocks:
                output = block(output)
                outputs.append(output)
            self._input, self._outputs = x, outputs
        return self._outputs

    def forget(self) -> None:
        """Let go of the last input and its outputs."""
        self._input, self._outputs = None, []

    def attach(self, model: nn.Module) -> None:
        """Make a model of the same architecture take the shared blocks' outputs from here; its own are dropped."""
        model.backbone.bottom_up = _Continuation(model.backbone.bottom_up, self)


class _Continuation(nn.Module):
    """A ResNet without its leading blocks; gives what the whole one gives."""

    def __init__(self, bottom_up: ResNet, trunk: SharedTrunk) -> None:
        super().__init__()
        self._trunk, self._out_features = trunk, tuple(bottom_up._out_features)
        self._names = _block_names(bottom_up)[len(trunk.names) :]
        for name in self._names:
            self.add_module(name, getattr(bottom_up, name))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the requested features, as ``ResNet.forward`` does."""
        shared = self._trunk(x)
        outputs = dict(zip(self._trunk.names, shared, strict=True))
        output = shared[-1]
        for name in self._names:
            outputs[name] = output = getattr(self, name)(output)
        return {name: outputs[name] for name in self._out_features}


def _block_names(bottom_up: ResNet) -> list[str]:
    return ["stem", *bottom_up.stage_names]


def _block_tensors(path: Path, block: str) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as weights:
        prefix = f"{_PREFIX}{block}."
        return {name: weights.get_tensor(name) for name in weights.keys() if name.startswith(prefix)}  # noqa: SIM118


def _are_equal(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
