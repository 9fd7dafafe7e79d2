"""The running mean of a model's weights over a window of iterations."""

from __future__ import annotations

from typing import Any

import torch

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
