"""Training hooks: members of the ensemble, exact resumption, and progress."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from safetensors.torch import save_file
from torch import nn

from detcurate.ensemble import MemberWriter
from detcurate.files import atomic_path


class EnsembleCheckpointer(HookBase):
    """Saves the weights of the model, and nothing else, after the given iterations.

    Add it to any Detectron2 trainer: ``trainer.register_hooks([EnsembleCheckpointer(writer, iterations)])``. Put it
    before the writers, which stay last. Only the main process writes.

    Args:
        writer: Keeps the files and the ledger.
        iterations: From 0; see :func:`detcurate.ensemble.member_iterations`.
    """

    def __init__(self, writer: MemberWriter, iterations: Collection[int]) -> None:
        self._writer, self._iterations = writer, frozenset(iterations)

    def after_step(self) -> None:
        """Save a member when this iteration is on the schedule."""
        if self.trainer.iter in self._iterations and comm.is_main_process():
            self._writer.save(self.trainer.iter, self._lr(), lambda path: save_weights(self.trainer.model, path))

    def _lr(self) -> float:
        """Return the rate of the update just made: the scheduler's hook logs it and moves the optimizer on."""
        rate, logged_at = self.trainer.storage.latest().get("lr", (0.0, -1))
        return float(rate if logged_at == self.trainer.iter else self.trainer.optimizer.param_groups[0]["lr"])


class StepSeeder(HookBase):
    """Seeds torch before every step from the run's seed, the iteration and the rank.

    So the random choices of a step (which proposals are sampled, dropout) do not depend on what came before, and a
    resumed training makes the choices that the interrupted one would have made.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        """Seed this step."""
        torch.manual_seed(mix_seed(self._seed, self.trainer.iter, comm.get_rank()))


class ResumeSaver(HookBase):
    """Saves everything that training needs to go on, every ``period`` iterations, atomically, over the last one."""

    def __init__(self, path: Path, period: int) -> None:
        self._path, self._period = path, period

    def after_step(self) -> None:
        """Save when the period has passed; not after the last iteration, which needs no resumption."""
        done = self.trainer.iter + 1
        if done % self._period or done >= self.trainer.max_iter or not comm.is_main_process():
            return
        state = {"model": unwrap(self.trainer.model).state_dict(), "trainer": self.trainer.state_dict()}
        with atomic_path(self._path) as temporary:
            torch.save(state, temporary)


class ProgressReporter(HookBase):
    """Reports each finished iteration to a callback."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress

    def after_step(self) -> None:
        """Report one iteration."""
        self._progress(1)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside a ``DistributedDataParallel`` wrapper, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's state as safetensors: no pickle, memory-mapped when read."""
    copied = {"device": "cpu", "copy": True, "memory_format": torch.contiguous_format}  # no two may share memory
    state = {name: tensor.detach().to(**copied) for name, tensor in unwrap(model).state_dict().items()}
    save_file(state, path)


def mix_seed(*parts: int) -> int:
    """Mix integers into one seed in [0, 2**32), so that neighbouring inputs give unrelated streams."""
    mixed = 0x9E3779B9
    for part in parts:
        mixed = (mixed ^ (part & 0xFFFFFFFF)) * 0x85EBCA6B & 0xFFFFFFFF
        mixed = (mixed ^ (mixed >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
        mixed ^= mixed >> 16
    return mixed
