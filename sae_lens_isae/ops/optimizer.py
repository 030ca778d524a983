"""Changes to the optimizer of an SAE, which SAELens' trainer builds and keeps to itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch.optim.optimizer import register_optimizer_step_pre_hook

Change = Callable[[torch.optim.Optimizer], None]


class OptimizerChanges:
    """Changes to the optimizer that holds a parameter, made just before its next step.

    The optimizer is found by a hook that torch calls before the step of any optimizer. The hook is
    there from `request` to `tidy_up`, and leaves optimizers alone that do not hold the parameter.
    """

    def __init__(self) -> None:
        self._requested: list[tuple[weakref.ref[torch.Tensor], Change]] = []
        self._remove: weakref.finalize[..., Any] | None = None

    def __reduce__(self) -> tuple[type[OptimizerChanges], tuple[()]]:
        # a copy of a model has another optimizer
        return OptimizerChanges, ()

    def request(self, parameter: torch.Tensor, change: Change) -> None:
        """Make a change before the next step of the optimizer that holds `parameter`."""
        self._requested.append((weakref.ref(parameter), change))
        if self._remove is None:
            # the hook must not keep this object alive, which may never see another step
            here = weakref.ref(self)

            def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
                if (changes := here()) is not None:
                    changes._before_step(optimizer)

            handle = register_optimizer_step_pre_hook(before_step)
            self._remove = weakref.finalize(self, handle.remove)

    def tidy_up(self) -> None:
        """Remove the hook if nothing waits for it. To be called between two steps: torch goes
        through its hooks during one, and none may go away meanwhile."""
        if self._remove is not None and not self._requested:
            self._remove()
            self._remove = None

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        due = [change for parameter, change in self._requested if id(parameter()) in held]
        self._requested = [
            r for r in self._requested if r[0]() is not None and id(r[0]()) not in held
        ]
        for change in due:
            change(optimizer)


def fuse_adam(optimizer: torch.optim.Optimizer) -> None:
    """Let Adam update all parameters in one kernel; the update is the same up to rounding.

    Nothing happens with another optimizer, or where the choice was made by hand.
    """
    if type(optimizer) is not torch.optim.Adam:
        return
    for group in optimizer.param_groups:
        if group["fused"] is None and group["foreach"] is None and not group["differentiable"]:
            group["fused"] = True
            for parameter in group["params"]:
                # a resumed optimizer may hold its step count on the CPU, where fused Adam does not
                # look for it, and moments with another order in memory, which it does not take
                state = optimizer.state.get(parameter, {})
                for name, value in state.items():
                    if name == "step":
                        state[name] = value.to(parameter.device, torch.float32)
                    elif value.stride() != parameter.stride():
                        state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def forget_moments(entries: Sequence[tuple[torch.Tensor, Bool[torch.Tensor, "..."]]]) -> Change:
    """A change that sets the running moments of some entries of parameters to 0.

    What Adam keeps of gradients to a latent's old atom says nothing about the new one.

    Args:
        entries: Parameters, and masks that broadcast to them.
    """

    def forget(optimizer: torch.optim.Optimizer) -> None:
        for parameter, mask in entries:
            for moment in optimizer.state.get(parameter, {}).values():
                if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape:
                    moment.masked_fill_(mask, 0)

    return forget
