"""Replay of a training step as CUDA graphs: at 4,096 latents a step's launches take the host longer
than the work takes the device."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

_EAGER_CALLS = 3
"""Calls of one kind before it is captured, so that a last, smaller batch is not."""
_MOST_GRAPHS = 4
"""Each keeps the memory of a step for itself."""


class GraphedStep:
    """Captures a function of tensors at its fourth call with the same key, and replays it then.

    Outputs of a replay share memory with those of the next one.
    """

    def __init__(self) -> None:
        self._calls: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, Callable[..., tuple[torch.Tensor, ...]]] = {}

    def __reduce__(self) -> tuple[type[GraphedStep], tuple[()]]:
        # a copy of a model captures graphs of its own
        return GraphedStep, ()

    def __call__(
        self,
        function: Callable[..., tuple[torch.Tensor, ...]],
        inputs: Sequence[torch.Tensor],
        module: nn.Module,
        key: Hashable,
    ) -> tuple[torch.Tensor, ...]:
        """`function(*inputs)`, differentiable in the parameters of `module`, which it reads itself.

        Args:
            function: Must not wait for the device and must do the same work at every call.
            key: What the function's course depends on besides the inputs' shapes and dtypes.
        """
        parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not _can_capture(parameters.values()):
            return function(*inputs)
        key = (key, _describe(inputs), _describe(parameters.values()), _precision())
        if key not in self._graphs:
            self._calls[key] += 1
            if self._calls[key] <= _EAGER_CALLS:
                return function(*inputs)
            if len(self._graphs) == _MOST_GRAPHS:
                oldest = next(iter(self._graphs))
                del self._graphs[oldest], self._calls[oldest]
            with _as_new_leaves(module, parameters) as leaves, _buffers_restored(module):
                self._graphs[key] = _capture(function, inputs, leaves)
        return self._graphs[key](*inputs, *parameters.values())


def _can_capture(parameters: Iterable[torch.Tensor]) -> bool:
    # a replay writes gradients to the same memory each time, so it cannot add to what is there
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and all(p.is_cuda and p.grad is None for p in parameters)
    )


def _describe(tensors: Iterable[torch.Tensor]) -> Hashable:
    # parameters are read where they lie: a module that was moved needs a graph of its own
    return tuple(
        (t.shape, t.dtype, t.data_ptr() if t.requires_grad else t.stride()) for t in tensors
    )


def _precision() -> Hashable:
    autocast = torch.is_autocast_enabled("cuda")
    return torch.get_float32_matmul_precision(), autocast and torch.get_autocast_dtype("cuda")


@contextmanager
def _as_new_leaves(
    module: nn.Module, parameters: dict[str, nn.Parameter]
) -> Generator[list[nn.Parameter], None, None]:
    """Put new parameters, on the same memory, in the places of the old ones.

    While the loss of an earlier step is alive its graph ties a parameter to the stream of that
    step, and the default stream must not take part in a capture.
    """
    leaves = {name: nn.Parameter(p.detach()) for name, p in parameters.items()}
    try:
        _place(module, leaves)
        yield list(leaves.values())
    finally:
        _place(module, parameters)


@contextmanager
def _buffers_restored(module: nn.Module) -> Generator[None, None, None]:
    """Undo what the warm-up calls before a capture add to running statistics."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    yield
    with torch.no_grad():
        for buffer, value in before:
            buffer.copy_(value)


def _place(module: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, parameter)


def _capture(
    function: Callable[..., tuple[torch.Tensor, ...]],
    inputs: Sequence[torch.Tensor],
    leaves: Sequence[torch.Tensor],
) -> Callable[..., tuple[torch.Tensor, ...]]:
    def with_leaves(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return function(*args[: len(inputs)])

    static = (*(t.clone() for t in inputs), *leaves)
    autocast = torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        # a weight that was cast during the warm-up would be stale at every replay
        cache_enabled=False,
    )
    # what the garbage collector frees during a capture, a graph or an event, would invalidate it
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with autocast:
            graphed = torch.cuda.make_graphed_callables(
                cast(Any, with_leaves), static, allow_unused_input=True
            )
    finally:
        if collects:
            gc.enable()
    return cast(Callable[..., tuple[torch.Tensor, ...]], graphed)
