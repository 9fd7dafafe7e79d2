"""Optimizers and learning-rate schedules in addition to Detectron2's, built from its config."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from detectron2 import solver
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from detcurate.ensemble.schedule import cosine_cycle_multiplier, cycle_length
from detcurate.errors import ConfigError


class CosineCycles(ParamScheduler):
    """A cosine that restarts each cycle; see :func:`detcurate.ensemble.schedule.cosine_cycle_multiplier`.

    Args:
        max_iter: T, the iterations of the training.
        cycles: M.
    """

    def __init__(self, max_iter: int, cycles: int) -> None:
        self._max_iter, self._cycles = max_iter, cycles

    def __call__(self, where: float) -> float:
        """Return the fraction of the base rate at a point of the training in [0, 1]."""
        iteration = round(where * self._max_iter)  # Detectron2 passes iteration / max_iter
        return cosine_cycle_multiplier(iteration, max_iter=self._max_iter, cycles=self._cycles)


def build_cosine_cycles(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build ``CURATE.ENSEMBLE.CYCLES`` cosine cycles over the whole training, with the warm-up in the first.

    Raises:
        ConfigError: The warm-up is longer than the first cycle.
    """
    require_lr_schedule(cfg)
    max_iter, cycles, warmup = cfg.SOLVER.MAX_ITER, cfg.CURATE.ENSEMBLE.CYCLES, cfg.SOLVER.WARMUP_ITERS
    multiplier = CosineCycles(max_iter, cycles)
    if warmup:
        # Never rescaled (SOLVER.RESCALE_INTERVAL): the cycles would not end at the iterations of the members.
        multiplier = WarmupParamScheduler(
            multiplier, cfg.SOLVER.WARMUP_FACTOR, warmup / max_iter, cfg.SOLVER.WARMUP_METHOD, rescale_interval=False
        )
    return LRMultiplier(optimizer, multiplier=multiplier, max_iter=max_iter)


COSINE_CYCLES = "WarmupCosineCyclesLR"
LR_SCHEDULERS: Mapping[str, Callable[[CfgNode, torch.optim.Optimizer], LRScheduler]] = {
    COSINE_CYCLES: build_cosine_cycles,
}
_DETECTRON2_LR_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")


def require_lr_schedule(cfg: CfgNode) -> None:
    """Raise ``ConfigError`` if the schedule of the learning rate is unknown or not possible."""
    name, known = cfg.SOLVER.LR_SCHEDULER_NAME, (*_DETECTRON2_LR_SCHEDULERS, *LR_SCHEDULERS)
    if name not in known:
        raise ConfigError(f"SOLVER.LR_SCHEDULER_NAME: must be one of {', '.join(sorted(known))} (got {name!r}).")
    if not cfg.SOLVER.BASE_LR > 0 and "Cosine" in name:  # a divisor in these schedules
        raise ConfigError(f"SOLVER.BASE_LR: must be above 0 for {name} (got {cfg.SOLVER.BASE_LR}).")
    if name != COSINE_CYCLES:
        return
    length = cycle_length(cfg.SOLVER.MAX_ITER, cfg.CURATE.ENSEMBLE.CYCLES)
    if cfg.SOLVER.WARMUP_ITERS >= length:
        raise ConfigError(
            f"SOLVER.WARMUP_ITERS: must be less than the {length} iterations of the first cycle (got "
            f"{cfg.SOLVER.WARMUP_ITERS}). Lower it or CURATE.ENSEMBLE.CYCLES."
        )


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Build the schedule that ``SOLVER.LR_SCHEDULER_NAME`` names, of this module or of Detectron2.

    A custom trainer calls it from its ``build_lr_scheduler``.
    """
    build = LR_SCHEDULERS.get(cfg.SOLVER.LR_SCHEDULER_NAME, solver.build_lr_scheduler)
    return build(cfg, optimizer)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build SGD as Detectron2 does, or AdamW on the same parameter groups."""
    if cfg.CURATE.TRAIN.OPTIMIZER == "sgd":
        return solver.build_optimizer(cfg, model)
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return optimizer(groups, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
