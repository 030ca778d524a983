"""Which form of an operation runs: dense products, sparse in plain torch, or Triton kernels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch

from sae_lens_isae.errors import InputError

Backend = Literal["auto", "dense", "torch", "triton"]
Form = Literal["dense", "torch", "triton"]

_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_DENSE_BELOW = {"cuda": 50, "cpu": 10}
"""Rows of the matrix per entry of a code under which a dense product is taken;
`benchmarks/sparse_ops.py` measures both sides."""

_forced: list[Backend] = ["auto"]


@contextmanager
def use_backend(backend: Backend) -> Generator[None, None, None]:
    """Force one form of the sparse operations, for tests, measurements and debugging.

    Args:
        backend: 'dense' fills the codes up with zeros and multiplies, 'torch' is sparse in plain
            torch, 'triton' needs a CUDA device (or TRITON_INTERPRET=1) and float32, bfloat16 or
            float16; 'auto' chooses by size and device.

    Raises:
        InputError: No such backend.
    """
    if backend not in get_args(Backend):
        raise InputError(f"backend must be one of {get_args(Backend)}, got {backend!r}")
    _forced.append(backend)
    try:
        yield
    finally:
        _forced.pop()


def choose_form(
    n_rows: int, k: int, *tensors: torch.Tensor, dense_below: int | None = None
) -> Form:
    """The form for k-sparse codes over `n_rows` rows.

    Args:
        dense_below: Rows per entry under which the dense form is the faster one, where an operation
            has a number of its own.

    Raises:
        RuntimeError: Triton is forced where it cannot run.
    """
    if _forced[-1] == "triton":
        if (reason := _why_not_triton(tensors)) is not None:
            raise RuntimeError(f"the Triton kernels were asked for, but {reason}")
        return "triton"
    if (forced := _forced[-1]) != "auto":
        return forced
    if dense_below is None:
        dense_below = _DENSE_BELOW.get(tensors[0].device.type, _DENSE_BELOW["cuda"])
    if n_rows < dense_below * k:
        return "dense"
    return "triton" if triton_serves(*tensors) else "torch"


def triton_serves(*tensors: torch.Tensor) -> bool:
    """Whether Triton kernels may and can run on these tensors.

    Plain torch takes over, with one warning, on a CUDA device without Triton.
    """
    if _forced[-1] == "triton":
        return _why_not_triton(tensors) is None
    if _forced[-1] != "auto" or tensors[0].device.type != "cuda":
        return False
    if not _triton_is_installed():
        _warn_once()
        return False
    return _why_not_triton(tensors) is None


def _why_not_triton(tensors: tuple[torch.Tensor, ...]) -> str | None:
    if not _triton_is_installed():
        return "Triton is not installed: pip install triton"
    for tensor in tensors:
        if tensor.dtype not in _TRITON_DTYPES:
            return f"they do not serve {tensor.dtype}"
        if tensor.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return f"the tensors are on {tensor.device.type!r} instead of a CUDA device"
    return None


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None


@cache
def _warn_once() -> None:
    warnings.warn(
        "Triton is not installed, so sparse operations run in plain torch, more slowly and with "
        "equal results: pip install triton",
        stacklevel=2,
    )
