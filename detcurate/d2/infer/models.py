"""The members' models: all in memory up to a limit, otherwise loaded in groups."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling.backbone.resnet import ResNet
from detectron2.structures import ImageList
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from detcurate.d2.checkpoints import model_for_weights
from detcurate.ensemble.index import verify_member
from detcurate.errors import EnsembleError

_PREFIX = "backbone.bottom_up."


def count_shared_blocks(model: nn.Module, members: Sequence[Path]) -> int:
    """Return how many leading blocks of the backbone (stem, res2, …) have equal tensors in all members.

    Blocks below ``MODEL.BACKBONE.FREEZE_AT`` are equal if the runs start from the same weights; the tensors themselves
    are compared, not the setting. 0 for one member, and for a backbone that is not Detectron2's ResNet.

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
    """Runs the leading blocks of one model, and keeps the outputs for the last input.

    Args:
        model: Provides the blocks.
        num_blocks: Number of blocks, at least 1.
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
        """Release the last input and its outputs."""
        self._input, self._outputs = None, []

    def attach(self, model: nn.Module) -> None:
        """Replace the shared blocks of a model of the same architecture by the outputs of this trunk."""
        model.backbone.bottom_up = _Continuation(model.backbone.bottom_up, self)


class _Continuation(nn.Module):
    """A ResNet without its leading blocks; its outputs equal those of the whole ResNet."""

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


class MemberModels:
    """The models of an ensemble on one device.

    Args:
        cfg: Detectron2's config; the models are on its ``MODEL.DEVICE``.
        members: Weights and digests, in the order of the members' numbers.
        memory_gb: Limit of the resident weights; at least one model is always resident.
        precision: ``"fp32"``, or ``"bf16"`` for autocast.

    Raises:
        EnsembleError: A file is missing, differs from its digest, or does not fit the config's model.
    """

    def __init__(self, cfg: Any, members: Sequence[tuple[Path, str]], *, memory_gb: float, precision: str) -> None:
        self._cfg, self._paths = cfg, [path for path, _ in members]
        for path, sha256 in members:
            verify_member(path, sha256)
        first = self._build(self._paths[0])
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in first.state_dict().values())
        self.num_resident = max(1, min(len(members), int(memory_gb * 1e9 // num_bytes)))
        self.num_shared_blocks = count_shared_blocks(first, self._paths)
        self._trunk = SharedTrunk(first, self.num_shared_blocks) if self.num_shared_blocks else None
        self._slots = [first, *(self._build(path) for path in self._paths[1 : self.num_resident])]
        if self._trunk is not None:
            for model in self._slots:
                self._trunk.attach(model)
        self._loaded = list(range(self.num_resident))
        device = torch.device(cfg.MODEL.DEVICE)
        self._autocast = (
            torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
        )

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def any_model(self) -> nn.Module:
        """One of the models, for steps that are equal in all members such as the preprocessing of images."""
        return self._slots[0]

    def preprocess(self, batch: list[dict[str, Any]]) -> ImageList | None:
        """Return a batch as the input of all members' backbones; None for a detector without a backbone."""
        model = self.any_model
        if not (hasattr(model, "preprocess_image") and hasattr(model, "backbone")):
            return None
        images = model.preprocess_image(batch)
        if images.tensor.is_cuda:
            images.tensor = images.tensor.contiguous(memory_format=torch.channels_last)
        return images

    def groups(self) -> Iterator[list[tuple[int, nn.Module]]]:
        """Yield the members with their numbers in groups that fit the memory limit."""
        for start in range(0, len(self), self.num_resident):
            numbers = range(start, min(start + self.num_resident, len(self)))
            for slot, number in enumerate(numbers):
                if self._loaded[slot] != number:
                    _load(self._slots[slot], self._paths[number])
                    self._loaded[slot] = number
            yield [(number, self._slots[slot]) for slot, number in enumerate(numbers)]

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Run without gradients, in the configured precision; release the shared trunk's memory at the end."""
        try:
            with torch.inference_mode(), self._autocast:
                yield
        finally:
            if self._trunk is not None:
                self._trunk.forget()

    def _build(self, path: Path) -> nn.Module:
        model = model_for_weights(self._cfg, path)
        if torch.device(self._cfg.MODEL.DEVICE).type == "cuda":
            model = model.to(memory_format=torch.channels_last)
        return model


def _load(model: nn.Module, path: Path) -> None:
    """Replace a model's weights by another member's, except for the shared blocks, which the model does not have."""
    state = load_file(path)
    try:
        model.load_state_dict({name: state[name] for name in model.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise EnsembleError(f"{path}: the member does not hold the weights of the config's model: {error}") from error
