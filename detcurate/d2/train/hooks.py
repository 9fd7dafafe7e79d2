"""Training hooks: saved members of the ensemble, exact resumption, and progress."""

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
    """The running mean of state dicts: weights, and the statistics of batch norms.

    Floating-point tensors are averaged in fp32 or better; other tensors (``num_batches_tracked``) are the latest.

    Source: Izmailov et al. 2018, arXiv 1803.05407, algorithm 1. There the statistics of batch norms are computed again
        on the training images; here they are averaged too [ours], which needs no forward pass.
    """

    def __init__(self) -> None:
        self.count, self.last_iteration = 0, -1
        self._mean: Tensors = {}

    def begin(self) -> None:
        """Reset the mean."""
        self.count, self._mean = 0, {}

    @torch.no_grad()
    def update(self, state: Tensors, iteration: int) -> None:
        """Add the state after an iteration to the mean."""
        self.count, self.last_iteration = self.count + 1, iteration
        for name, tensor in state.items():
            mean = self._mean.get(name)
            if mean is None or not tensor.is_floating_point():
                wide = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
                self._mean[name] = tensor.detach().to(wide, copy=True)
            else:
                mean = self._mean[name] = mean.to(tensor.device)  # a resumed mean is on the CPU
                mean += (tensor.detach() - mean) / self.count

    def state(self) -> Tensors:
        """Return the mean."""
        return dict(self._mean)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from."""
        return {"count": self.count, "last_iteration": self.last_iteration, "mean": dict(self._mean)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state."""
        self.count, self.last_iteration = state["count"], state["last_iteration"]
        self._mean = dict(state["mean"])


_DIGESTS = ".sha256"
_logger = logging.getLogger("detcurate")


class EnsembleCheckpointer(HookBase):
    """Saves the weights of the model, without optimizer state, after the given iterations.

    Add it to any Detectron2 trainer: ``trainer.register_hooks([ensemble_checkpointer(directory, max_iter)])``. Only the
    main process writes. The running mean of a window is part of the trainer's state, so that a resumed training
    continues it; an average with missing samples is not saved.

    Args:
        writer: Writes the files and the member index.
        iterations: From 0; see :func:`detcurate.ensemble.schedule.member_iterations`.
        windows: An iteration -> the iterations of the mean that is saved after it; see
            :func:`detcurate.ensemble.schedule.averaging_windows`.
    """

    def __init__(
        self, writer: MemberWriter, iterations: Collection[int], windows: Mapping[int, Sequence[int]] | None = None
    ) -> None:
        self._writer, self._iterations, self._windows = writer, frozenset(iterations), dict(windows or {})
        self._end_of = {sample: end for end, samples in self._windows.items() for sample in samples}
        self._average = WeightAverage()

    def before_train(self) -> None:
        """Add the sample that is missing in a checkpoint that another hook saved before this hook ran."""
        done = self.trainer.start_iter - 1
        if done in self._end_of and self._average.last_iteration != done and comm.is_main_process():
            self._sample(done, None)

    def after_step(self) -> None:
        """Save a member if this iteration is on the schedule, and add it to the mean if it is a sample."""
        if not comm.is_main_process():
            return
        iteration = self.trainer.iter
        if iteration in self._iterations:
            save_with(self._writer, unwrap(self.trainer.model).state_dict(), iteration, self._lr(), CHECKPOINT)
        if iteration in self._end_of:
            self._sample(iteration, self._lr())

    def state_dict(self) -> dict[str, Any]:
        """Return the running mean, if there are windows, as part of the trainer's state."""
        return self._average.state_dict() if self._windows else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the running mean of an interrupted training."""
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
                "train: no average saved after iteration %d, because %d of %d samples precede the resumption",
                iteration, len(samples) - self._average.count, len(samples),
            )  # fmt: skip
        self._average.begin()

    def _lr(self) -> float:
        """Return the rate of the last update: the scheduler's hook logs it before it changes the optimizer."""
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
    """Return the hook that saves members of any Detectron2 trainer to ``directory/run-<run>``.

    Args:
        directory: Of the ensemble.
        max_iter: ``cfg.SOLVER.MAX_ITER``.
        run: Number of the run; the runs of one ensemble have different numbers.
        seed: Of the run, for the member index.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        max_gb: Limit on disk of the members of this run; 0 for no limit.
        average_last: Number of averages to save besides.
        average_every: Iterations between two samples of an average.
        **schedule: Arguments of :func:`detcurate.ensemble.schedule.member_iterations`, such as ``members_per_run=10``.

    Raises:
        ConfigError: The schedule is not possible.
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
    """Save a member from a custom training loop; an iteration that is saved already is skipped.

    Call it after ``optimizer.step()`` in every process of a distributed training; the main process writes.

    Args:
        model: Wrapped in ``DistributedDataParallel`` or not.
        directory: Of the ensemble; the member goes to ``directory/run-<run>``.
        iteration: From 0.
        run: Number of the run.
        seed: Of the run, for the member index.
        lr: The rate of the last update, for the member index.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        max_gb: Limit on disk of the members of this run; 0 for no limit.

    Raises:
        EnsembleError: A weight is not finite.
    """
    if comm.is_main_process():
        writer = MemberWriter(Path(directory), run=run, seed=seed, dtype=dtype, max_bytes=int(max_gb * 1e9))
        save_with(writer, unwrap(model).state_dict(), iteration, lr, CHECKPOINT)


def save_with(
    writer: MemberWriter, state: Mapping[str, torch.Tensor], iteration: int, lr: float | None, kind: str
) -> None:
    """Save a state dict as a member with a writer; raises ``EnsembleError`` if a weight is not finite."""
    subject = f"the weights after iteration {iteration}"
    writer.save(iteration, lr, lambda path: save_state(state, path, writer.dtype, subject), kind)


class StepSeeder(HookBase):
    """Seeds torch before every step from the run's seed, the iteration and the rank.

    The random choices of a step (sampled proposals, dropout) then do not depend on earlier steps, and a resumed
    training makes the same choices as an uninterrupted one.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        """Seed this step."""
        torch.manual_seed(mix_seed(self._seed, self.trainer.iter, comm.get_rank()))


class ResumeSaver(HookBase):
    """Saves the state to resume training from every ``period`` iterations, atomically over the previous one."""

    def __init__(self, path: Path, period: int) -> None:
        self._path, self._period = path, period

    def after_step(self) -> None:
        """Save every ``period`` iterations, except after the last, which needs no resumption."""
        done = self.trainer.iter + 1
        if done % self._period or done >= self.trainer.max_iter or not comm.is_main_process():
            return
        state = {"model": unwrap(self.trainer.model).state_dict(), "trainer": self.trainer.state_dict()}
        save_state_to_resume(state, self._path)


def save_state_to_resume(state: Mapping[str, Any], path: Path) -> None:
    """Write a state atomically, with its digest in a file, because torch does not check what it reads."""
    digests = path.with_suffix(_DIGESTS)
    before = sha256_file(path) if path.exists() else ""
    with atomic_path(path) as temporary:
        with temporary.open("wb") as stream:
            torch.save(state, stream)
        write_bytes(digests, f"{sha256_file(temporary)}\n{before}\n".encode())


def load_state_to_resume(path: Path) -> dict[str, Any] | None:
    """Read the state that :func:`save_state_to_resume` wrote; return None if there is none.

    Raises:
        EnsembleError: The file is damaged or cannot be read.
    """
    if not path.exists():
        return None
    try:
        digests = path.with_suffix(_DIGESTS)
        if digests.exists() and sha256_file(path) not in digests.read_text().split():
            raise ValueError("it differs from the digest in the .sha256 file")
        return load_tensors(path)
    except Exception as error:
        raise EnsembleError(f"{path}: the state to resume from cannot be read: {error}. Delete that file.") from error


def remove_state_to_resume(path: Path) -> None:
    """Remove a state and its digest."""
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
    """Write a model's state dict as safetensors."""
    save_state(unwrap(model).state_dict(), path, "fp32", "the weights")


def save_state(state: Mapping[str, torch.Tensor], path: Path, dtype: str, subject: str) -> None:
    """Write a state dict as safetensors in a dtype.

    Raises:
        EnsembleError: A tensor is not finite, or not in the range of the dtype; ``subject`` begins the message.
    """
    tensors = stored(state, dtype)
    require_finite(tensors, state, dtype, subject, "The training has diverged: lower SOLVER.BASE_LR.")
    save_file(tensors, path)


def mix_seed(*parts: int) -> int:
    """Return one seed in [0, 2**32) from integers; similar inputs give unrelated seeds."""
    mixed = 0x9E3779B9
    for part in parts:
        mixed = (mixed ^ (part & 0xFFFFFFFF)) * 0x85EBCA6B & 0xFFFFFFFF
        mixed = (mixed ^ (mixed >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
        mixed ^= mixed >> 16
    return mixed
