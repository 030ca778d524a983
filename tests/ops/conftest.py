"""Where each form of an operation can be tested: the kernels run interpreted on a CPU."""

from __future__ import annotations

import pytest
import torch

ON_CUDA = torch.cuda.is_available()

# one process runs the kernels either compiled or interpreted
_interpreted = pytest.mark.skipif(ON_CUDA, reason="the kernels are compiled here")
_on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not ON_CUDA, reason="needs a CUDA device")]
BACKENDS_AND_DEVICES = [
    ("dense", "cpu"),
    ("torch", "cpu"),
    pytest.param("triton", "cpu", marks=_interpreted),
    pytest.param("torch", "cuda", marks=_on_gpu),
    pytest.param("triton", "cuda", marks=_on_gpu),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
