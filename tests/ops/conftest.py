"""Where each form of an operation can be tested: the kernels run interpreted on a CPU."""

from __future__ import annotations

import pytest
import torch

ON_CUDA = torch.cuda.is_available()

# one process runs the kernels either compiled or interpreted
_interpreted = pytest.mark.skipif(ON_CUDA, reason="the kernels are compiled here")
BACKENDS_AND_DEVICES = [
    ("dense", "cpu"),
    ("torch", "cpu"),
    pytest.param("triton", "cpu", marks=_interpreted),
    pytest.param("torch", "cuda", marks=pytest.mark.gpu),
    pytest.param("triton", "cuda", marks=pytest.mark.gpu),
]
KERNEL_DEVICES = [
    pytest.param("cpu", marks=_interpreted),
    pytest.param("cuda", marks=pytest.mark.gpu),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
