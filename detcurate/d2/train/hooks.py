"""Training hooks: members of the ensemble, exact resumption, and progress."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from safetensors.torch import save_file
from torch import nn

from detcurate.d2.checkpoints import load_tensors, require_finite, stored
from detcurate.ensemble.index import AVERAGE, CHECKPOINT, MemberWriter
from detcurate.ensemble.schedule import averaging_windows, member_iterations
from detcurate.errors import EnsembleError
from detcurate.io.files import atomic_path, sha256_file, write_bytes

Tensors = dict[str, torch.Tensor]


class WeightAverage:
    """The mean of the states it was shown: weights, and the statistics of batch norms, which are part of the state.

    Floating-point tensors are averaged in fp32 or better, all others (``num_batches_tracked``) are the latest.

    Source: Izmailov et al. 2018, arXiv 1803.05407, algorithm 1. There the statistics of batch norms are measured anew
        on the training images; here they are averaged too [ours], which costs no pass.
    """

    def __init__(self) -> None:
        self.count, self.last_iteration = 0, -1
        self._mean: Tensors = {}

    def begin(self) -> None:
        """Forget what was averaged."""
        self.count, self._mean = 0, {}

    @torch.no_grad()
    def update(self, state: Tensors, iteration: int) -> None:
        """Take the state after an iteration into the mean."""
        self.count, self.last_iteration = self.count + 1, iteration
        for name, tensor in state.items():
            mean = self._mean.get(name)
            if mean is None or not tensor.is_floating_point():
                wide = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
                self._mean[name] = tensor.detach().to(wide, copy=True)
            else:
                mean = self._mean[name] = mean.to(tensor.device)  # a resumed mean was loaded to the CPU
                mean += (tensor.detach() - mean) / self.count

    def state(self) -> Tensors:
        """Return the mean."""
        return dict(self._mean)

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on."""
        return {"count": self.count, "last_iteration": self.last_iteration, "mean": dict(self._mean)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.count, self.last_iteration = state["count"], state["last_iteration"]
        self._mean = dict(state["mean"])


_DIGESTS = ".sha256"
_logger = logging.getLogger("detcurate")


class EnsembleCheckpointer(HookBase):
    """Saves the weights of the model, and nothing else, after the given iterations.

    Add it to any Detectron2 trainer: ``trainer.register_hooks([ensemble_checkpointer(directory, max_iter)])``. Only the
    main process writes. The running mean of a window is part of the trainer's state, so that a resumed training goes on
    with it; a window of which samples are missing is not saved.

    Args:
        writer: Keeps the files and the ledger.
        iterations: From 0; see :func:`detcurate.ensemble.schedule.member_iterations`.
        windows: An iteration -> the iterations whose mean is saved after it; see
            :func:`detcurate.ensemble.schedule.averaging_windows`.
    """

    def __init__(
        self, writer: MemberWriter, iterations: Collection[int], windows: Mapping[int, Sequence[int]] | None = None
    ) -> None:
        self._writer, self._iterations, self._windows = writer, frozenset(iterations), dict(windows or {})
        self._end_of = {sample: end for end, samples in self._windows.items() for sample in samples}
        self._average = WeightAverage()

    def before_train(self) -> None:
        """Take the sample that a checkpoint saved by another hook, before this one had its turn, does not hold."""
        done = self.trainer.start_iter - 1
        if done in self._end_of and self._average.last_iteration != done and comm.is_main_process():
            self._sample(done, None)

    def after_step(self) -> None:
        """Save a member when this iteration is on the schedule, and take it into the mean when it is a sample."""
        if not comm.is_main_process():
            return
        iteration = self.trainer.iter
        if iteration in self._iterations:
            save_with(self._writer, unwrap(self.trainer.model).state_dict(), iteration, self._lr(), CHECKPOINT)
        if iteration in self._end_of:
            self._sample(iteration, self._lr())

    def state_dict(self) -> dict[str, Any]:
        """Return the running mean when there is one, so that the trainer's state holds it."""
        return self._average.state_dict() if self._windows else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the running mean of an interrupted training."""
        self._average.load_state_dict(state)

    def _sample(self, iteration: int, lr: float | None) -> None:
        end = self._end_of[iteration]
        samples = self._windows[end]
        if iteration == samples[0]:
            self._average.begin()
        self._average.update(unwrap(self.trainer.model).state_dict(), iteration)
        if iteration < end:
            return
        if self._average.count == len(samples):
            save_with(self._writer, self._average.state(), iteration, lr, AVERAGE)
        else:
            _logger.warning(
                "no average is saved after iteration %d: %d of %d samples are from before this training was resumed",
                iteration, len(samples) - self._average.count, len(samples),
            )  # fmt: skip
        self._average.begin()

    def _lr(self) -> float:
        """Return the rate of the update just made: the scheduler's hook logs it and moves the optimizer on."""
        rate, logged_at = self.trainer.storage.latest().get("lr", (0.0, -1))
        return float(rate if logged_at == self.trainer.iter else self.trainer.optimizer.param_groups[0]["lr"])


def ensemble_checkpointer(
    directory: str | Path,
    max_iter: int,
    *,
    run: int = 0,
    seed: int | None = None,
    dtype: str = "fp32",
    max_gb: float = 0.0,
    average_last: int = 0,
    average_every: int = 1,
    **schedule: Any,
) -> EnsembleCheckpointer:
    """Return the hook for a trainer of one's own; its members go to ``directory/run-<run>``.

    Args:
        directory: Of the ensemble.
        max_iter: ``cfg.SOLVER.MAX_ITER``.
        run: Number of the run, when several trainings make one ensemble.
        seed: Of the run, for the ledger.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        max_gb: What the members of this run may take on disk; 0 for no limit.
        average_last: How many averages are saved besides.
        average_every: Iterations between two samples of an average.
        **schedule: What :func:`detcurate.ensemble.schedule.member_iterations` takes, such as ``members_per_run=10``.

    Raises:
        ConfigError: The schedule cannot be.
    """
    iterations = member_iterations(max_iter, **schedule)
    windows = averaging_windows(iterations, last=average_last, every=average_every)
    writer = MemberWriter(
        Path(directory),
        run=run,
        seed=seed,
        dtype=dtype,
        max_bytes=int(max_gb * 1e9),
        plan=[*((iteration, CHECKPOINT) for iteration in iterations), *((end, AVERAGE) for end in windows)],
    )
    return EnsembleCheckpointer(writer, iterations, windows)


def save_member(
    model: nn.Module,
    directory: str | Path,
    iteration: int,
    *,
    run: int = 0,
    seed: int | None = None,
    lr: float | None = None,
    dtype: str = "fp32",
    max_gb: float = 0.0,
) -> None:
    """Save a member from a loop of one's own; an iteration that is saved already is not saved again.

    To be called after ``optimizer.step()``, by every process of a distributed training: the main one writes.

    Args:
        model: Wrapped in ``DistributedDataParallel`` or not.
        directory: Of the ensemble; the member goes to ``directory/run-<run>``.
        iteration: From 0.
        run: Number of the run.
        seed: Of the run, for the ledger.
        lr: The rate of the update just made, for the ledger.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        max_gb: What the members of this run may take on disk; 0 for no limit.

    Raises:
        EnsembleError: A weight is not finite.
    """
    if comm.is_main_process():
        writer = MemberWriter(Path(directory), run=run, seed=seed, dtype=dtype, max_bytes=int(max_gb * 1e9))
        save_with(writer, unwrap(model).state_dict(), iteration, lr, CHECKPOINT)


def save_with(
    writer: MemberWriter, state: Mapping[str, torch.Tensor], iteration: int, lr: float | None, kind: str
) -> None:
    """Save a state as a member with a writer, unless a weight is not finite."""
    what = f"the weights after iteration {iteration}"
    writer.save(iteration, lr, lambda path: save_state(state, path, writer.dtype, what), kind)


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
        save_state_to_resume(state, self._path)


def save_state_to_resume(state: Mapping[str, Any], path: Path) -> None:
    """Write a state atomically, its digest beside it first: torch does not check what it reads."""
    digests = path.with_suffix(_DIGESTS)
    before = sha256_file(path) if path.exists() else ""
    with atomic_path(path) as temporary:
        with temporary.open("wb") as stream:
            torch.save(state, stream)
        write_bytes(digests, f"{sha256_file(temporary)}\n{before}\n".encode())


def load_state_to_resume(path: Path) -> dict[str, Any] | None:
    """Read what :func:`save_state_to_resume` wrote; None when there is none.

    Raises:
        EnsembleError: It is damaged, or cannot be read.
    """
    if not path.exists():
        return None
    try:
        digests = path.with_suffix(_DIGESTS)
        if digests.exists() and sha256_file(path) not in digests.read_text().split():
            raise ValueError("it is not what was written, by the digest beside it")
        return load_tensors(path)
    except Exception as error:
        raise EnsembleError(f"the state to resume from must be readable ({path}): {error}; delete that file") from error


def remove_state_to_resume(path: Path) -> None:
    """Remove a state, and its digest."""
    path.unlink(missing_ok=True)
    path.with_suffix(_DIGESTS).unlink(missing_ok=True)


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
    save_state(unwrap(model).state_dict(), path, "fp32", "the weights")


def save_state(state: Mapping[str, torch.Tensor], path: Path, dtype: str, what: str) -> None:
    """Write a state as safetensors in a dtype.

    Raises:
        EnsembleError: A tensor is not finite, or no longer is in that dtype; ``what`` begins the message.
    """
    tensors = stored(state, dtype)
    require_finite(tensors, state, dtype, what, "the training has diverged: lower SOLVER.BASE_LR")
    save_file(tensors, path)


def mix_seed(*parts: int) -> int:
    """Mix integers into one seed in [0, 2**32), so that neighbouring inputs give unrelated streams."""
    mixed = 0x9E3779B9
    for part in parts:
        mixed = (mixed ^ (part & 0xFFFFFFFF)) * 0x85EBCA6B & 0xFFFFFFFF
        mixed = (mixed ^ (mixed >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
        mixed ^= mixed >> 16
    return mixed
