"""Record a training step as a CUDA graph and replay it.

At 4,096 latents launching a step's kernels takes the host longer than the kernels take the device.
A replay launches all of them at once. Nothing here knows what the step computes.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import nn

Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")

_EAGER_CALLS = 3
"""Calls of one kind before it is recorded: a last, smaller batch is not, and whatever is compiled
or set up at a first call is there."""
_MOST_GRAPHS = 4
"""Each keeps memory for what its step returns."""


class ReplayedFunction:
    """Records a function at its fourth call of one kind and replays it from then on.

    The function takes one value and returns one: a tensor, or a dataclass, dict, tuple or list of
    such values. Whatever in it is no tensor belongs to the kind of the call: another number means
    another recording.

    Outputs of a replay share memory with those of the next one, whose call must come after the
    backward pass of this one.
    """

    def __init__(self) -> None:
        self._calls: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, _Recording] = {}
        self._pool: Any = None

    def __reduce__(self) -> tuple[type[ReplayedFunction], tuple[()]]:
        # a copy of a model records graphs of its own
        return ReplayedFunction, ()

    def __call__(
        self,
        function: Callable[[Inputs], Outputs],
        inputs: Inputs,
        module: nn.Module,
        key: Hashable = None,
    ) -> Outputs:
        """`function(inputs)`, differentiable in the parameters of `module`, which it reads itself.

        Args:
            function: Must not wait for the device, and must do the same work at every call of one
                kind.
            key: What its control flow depends on besides `inputs`.
        """
        parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        if not _can_record(parameters.values()):
            return function(inputs)
        tensors, structure = flatten(inputs)
        kind = (key, structure, _describe(tensors), _describe(parameters.values()), _precision())
        if kind not in self._recordings:
            self._calls[kind] += 1
            if self._calls[kind] <= _EAGER_CALLS:
                return function(inputs)
            if len(self._recordings) == _MOST_GRAPHS:
                oldest = next(iter(self._recordings))
                del self._recordings[oldest], self._calls[oldest]
            with _as_new_leaves(module, parameters) as leaves:
                # one at a time is replayed: what each needs for a while may lie in the same place
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self._recordings[kind] = _record(function, tensors, structure, leaves, self._pool)
        return self._recordings[kind].replay(tensors, parameters.values())


class _Recording(NamedTuple):
    graph: Callable[..., tuple[torch.Tensor, ...]]
    outputs: Structure

    def replay(self, tensors: Iterable[torch.Tensor], parameters: Iterable[torch.Tensor]) -> Any:
        return unflatten(self.outputs, iter(self.graph(*tensors, *parameters)))


class Structure(NamedTuple):
    """A value without its tensors; hashable."""

    kind: Any
    """`torch.Tensor`, a dataclass, dict, tuple or list; None for a constant."""
    names: tuple[Any, ...] = ()
    """Of the fields or keys; of a constant its value."""
    parts: tuple[Structure, ...] = ()


def flatten(value: Any) -> tuple[list[torch.Tensor], Structure]:
    """The tensors in a value, in order, and the rest of it."""
    if isinstance(value, torch.Tensor):
        return [value], Structure(torch.Tensor)
    if is_dataclass(value) and not isinstance(value, type):
        children = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, dict):
        children = cast("dict[Any, Any]", value)
    elif isinstance(value, tuple | list):
        children = dict(enumerate(cast("Sequence[Any]", value)))
    else:
        return [], Structure(None, (value,))
    tensors: list[torch.Tensor] = []
    parts: list[Structure] = []
    for child in children.values():
        of_child, part = flatten(child)
        tensors += of_child
        parts.append(part)
    return tensors, Structure(type(value), tuple(children), tuple(parts))


def unflatten(structure: Structure, tensors: Iterator[torch.Tensor]) -> Any:
    """The value whose `flatten` gave these."""
    kind, names, parts = structure
    if kind is torch.Tensor:
        return next(tensors)
    if kind is None:
        return names[0]
    children = [unflatten(part, tensors) for part in parts]
    if issubclass(kind, tuple | list):
        return kind(children)
    return kind(**dict(zip(names, children, strict=True)))


def _can_record(parameters: Iterable[torch.Tensor]) -> bool:
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


def _place(module: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, parameter)


def _record(
    function: Callable[[Any], Any],
    tensors: Sequence[torch.Tensor],
    structure: Structure,
    leaves: Sequence[torch.Tensor],
    pool: Any,
) -> _Recording:
    outputs: list[Structure] = []

    def of_tensors(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # the parameters are among the arguments for autograd alone
        with autocast:
            found, of_outputs = flatten(function(unflatten(structure, iter(args[: len(tensors)]))))
        outputs.append(of_outputs)
        return tuple(found)

    static = (*(t.clone() for t in tensors), *leaves)
    autocast = torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        # a weight that was cast before would be stale at every replay
        cache_enabled=False,
    )
    # what the garbage collector frees during a capture, a graph or an event, would invalidate it
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        # on for the forward pass alone, as in a step that is not recorded
        with torch.autocast("cuda", enabled=False):
            graph = torch.cuda.make_graphed_callables(
                cast(Any, of_tensors),
                static,
                # the calls before were the warm-up; torch would keep what its own returns
                num_warmup_iters=0,
                allow_unused_input=True,
                pool=pool,
            )
    finally:
        if collects:
            gc.enable()
    return _Recording(cast(Any, graph), outputs[-1])
