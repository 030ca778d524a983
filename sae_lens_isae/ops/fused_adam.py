"""Adam in one kernel: SAELens builds its optimizer without asking for that."""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

_waiting: list[weakref.ref[torch.Tensor]] = []
"""Parameters whose optimizer has not made a step yet."""


def fuse_adam_of(parameter: torch.Tensor) -> None:
    """Let the Adam that holds `parameter` run fused, from its next step on.

    Nothing happens off CUDA, with another optimizer, or where the choice was made by hand. The
    update is the same up to rounding.
    """
    if parameter.is_cuda:
        _wait_for_optimizer_of(parameter)


def _wait_for_optimizer_of(parameter: torch.Tensor) -> None:
    _listen_to_optimizers()
    _waiting.append(weakref.ref(parameter))


@cache
def _listen_to_optimizers() -> None:
    # once for all parameters: torch goes through its hooks while one runs, and none may go away
    # meanwhile
    register_optimizer_step_pre_hook(_before_step)


def _before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if not _waiting:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found = any(id(reference()) in held for reference in _waiting)
    _waiting[:] = [
        reference
        for reference in _waiting
        if reference() is not None and id(reference()) not in held
    ]
    if found and type(optimizer) is torch.optim.Adam:
        _fuse(optimizer)


def _fuse(optimizer: torch.optim.Adam) -> None:
    for group in optimizer.param_groups:
        if group["fused"] is None and group["foreach"] is None and not group["differentiable"]:
            group["fused"] = True
            for parameter in group["params"]:
                # a resumed optimizer may hold its step count on the CPU, where fused Adam does not
                # look for it
                if "step" in (state := optimizer.state.get(parameter, {})):
                    state["step"] = state["step"].to(parameter.device, torch.float32)
