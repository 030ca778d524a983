"""Settings that several commands take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from sae_lens_isae.errors import InputError


def check_device(device: str) -> None:
    """Refuse a device that torch does not see.

    Raises:
        InputError: There is no such device.
    """
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r} is none that torch knows, e.g. cpu, cuda") from error
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device}: torch sees no CUDA device, use --device cpu")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {device}: torch sees {torch.cuda.device_count()} CUDA devices")


def check_seed(seed: int) -> None:
    """Refuse a seed that NumPy's generators do not take.

    Raises:
        InputError: It is out of range.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"seed must be between 0 and {2**32 - 1}, got {seed}")


def check_lr(lr: float) -> None:
    """Refuse a learning rate that cannot be one.

    Raises:
        InputError: It is not a number above 0.
    """
    if not (math.isfinite(lr) and lr > 0):
        raise InputError(f"lr must be a number > 0, got {lr}")


def settings_that_differ(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What of `wanted` is another value in `found`, for a message; empty where all agree."""
    return ", ".join(
        f"{name} {found.get(name)!r} instead of {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value
    )
