"""The members' models: all in memory up to a budget, else loaded in groups, shard by shard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import ImageList
from safetensors.torch import load_file
from torch import nn

from detcurate.d2.trunk import SharedTrunk, count_shared_blocks
from detcurate.d2.weights import model_for_weights
from detcurate.ensemble import verify_member
from detcurate.errors import EnsembleError


class MemberModels:
    """The models of an ensemble on one device.

    Args:
        cfg: Detectron2's config; its ``MODEL.DEVICE`` is where they go.
        members: Weights and digests, in the order of the members' numbers.
        memory_gb: What the resident weights may take; at least one model is always resident.
        precision: ``"fp32"``, or ``"bf16"`` for autocast.

    Raises:
        EnsembleError: A file is missing, has another digest, or holds another architecture.
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
        """A model for what is the same in all members, such as the preprocessing of images."""
        return self._slots[0]

    def preprocess(self, batch: list[dict[str, Any]]) -> ImageList | None:
        """Return a batch as the backbones take it, once for all members; None where a detector has no such parts."""
        model = self.any_model
        if not (hasattr(model, "preprocess_image") and hasattr(model, "backbone")):
            return None
        images = model.preprocess_image(batch)
        if images.tensor.is_cuda:
            images.tensor = images.tensor.contiguous(memory_format=torch.channels_last)
        return images

    def groups(self) -> Iterator[list[tuple[int, nn.Module]]]:
        """Yield the members with their numbers, as many at a time as are resident; all at once when all fit."""
        for start in range(0, len(self), self.num_resident):
            numbers = range(start, min(start + self.num_resident, len(self)))
            for slot, number in enumerate(numbers):
                if self._loaded[slot] != number:
                    _load(self._slots[slot], self._paths[number])
                    self._loaded[slot] = number
            yield [(number, self._slots[slot]) for slot, number in enumerate(numbers)]

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Run without gradients, in the precision asked for; the shared trunk's memory is let go of at the end."""
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
    """Replace a model's weights by another member's; the shared blocks, which the model lacks, are left out."""
    state = load_file(path)
    try:
        model.load_state_dict({name: state[name] for name in model.state_dict()})
    except (KeyError, RuntimeError) as error:
        raise EnsembleError(f"a member must hold the weights of the config's model ({path}): {error}") from error
