"""How code stays out of `torch.compile`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def not_compiled(function: F) -> F:
    """Run `function` eagerly inside compiled code; `torch.compiler.disable` with its type kept."""
    return cast(F, torch.compiler.disable(function))
