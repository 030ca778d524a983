"""Adam in one kernel: SAELens builds its optimizer without asking for that."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook


def fuse_adam_of(parameter: torch.Tensor) -> None:
    """Let the Adam that holds `parameter` run fused, from its next step on.

    Nothing happens off CUDA, with another optimizer, or where the choice was made by hand. The
    update is the same up to rounding.
    """
    if not parameter.is_cuda:
        return
    reference = weakref.ref(parameter)

    def before_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        target = reference()
        held = (p for group in optimizer.param_groups for p in group["params"])
        if target is not None and not any(p is target for p in held):
            return
        handle.remove()
        if target is not None and type(optimizer) is torch.optim.Adam:
            _fuse(optimizer)

    handle = register_optimizer_step_pre_hook(before_step)


def _fuse(optimizer: torch.optim.Adam) -> None:
    for group in optimizer.param_groups:
        if group["fused"] is None and group["foreach"] is None and not group["differentiable"]:
            group["fused"] = True
            for parameter in group["params"]:
                # a resumed optimizer may hold its step count on the CPU, where fused Adam does not
                # look for it
                if "step" in (state := optimizer.state.get(parameter, {})):
                    state["step"] = state["step"].to(parameter.device, torch.float32)
