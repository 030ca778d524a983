"""Which form runs, and what is said when it cannot."""

from __future__ import annotations

import contextlib
import warnings
from types import SimpleNamespace

import pytest
import torch

from sae_lens_isae.ops import backends, use_backend
from sae_lens_isae.ops.backends import choose_form, triton_serves
from sae_lens_isae.ops.selection import select_largest
from sae_lens_isae.ops.sparse import sum_rows


def on_cuda(dtype=torch.float32):
    """What the choice looks at, without a GPU."""
    return SimpleNamespace(device=torch.device("cuda"), dtype=dtype)


def test_choice_by_size_and_device():
    assert choose_form(256, 40, torch.zeros(1)) == "dense"
    assert choose_form(4096, 40, torch.zeros(1)) == "torch"
    assert choose_form(1024, 40, on_cuda()) == "dense"
    assert choose_form(65_536, 40, on_cuda(torch.float64)) == "torch"
    assert choose_form(65_536, 40, on_cuda()) == "triton"


def test_forced_forms_nest_and_end():
    x = torch.zeros(1)
    with use_backend("dense"):
        assert choose_form(10**6, 1, x) == "dense"
        with contextlib.suppress(KeyError), use_backend("torch"):
            assert choose_form(10, 5, x) == "torch"
            raise KeyError
        assert choose_form(10**6, 1, x) == "dense"
    assert choose_form(10**6, 1, x) == "torch"


def test_unknown_backend():
    with pytest.raises(ValueError, match="got 'cutlass'"):
        use_backend("cutlass").__enter__()


def test_forced_kernels_say_why_they_cannot_run(monkeypatch):
    indices, weights = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)
    with use_backend("triton"):
        with pytest.raises(RuntimeError, match=r"they do not serve torch.float64"):
            sum_rows(torch.ones(3, 2, dtype=torch.float64), indices, weights)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(RuntimeError, match="on 'cpu' instead of a CUDA device"):
            sum_rows(torch.ones(3, 2), indices, weights)
        monkeypatch.setattr(backends, "_triton_is_installed", lambda: False)
        with pytest.raises(RuntimeError, match="pip install triton"):
            sum_rows(torch.ones(3, 2), indices, weights)


def test_a_gpu_without_triton_falls_back_with_one_warning(monkeypatch):
    monkeypatch.setattr(backends, "_triton_is_installed", lambda: False)
    backends._warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert choose_form(65_536, 40, on_cuda()) == "torch"
        assert not triton_serves(on_cuda())
    assert ["Triton is not installed" in str(w.message) for w in warned] == [True]
    backends._warn_once.cache_clear()


def test_float64_is_never_selected_from_by_the_kernel():
    """Kernels round to float32: differences below that must still decide."""
    u = torch.ones(1, 8, dtype=torch.float64)
    u[0, 5] += 1e-12
    for backend in ("auto", "dense", "torch", "triton"):
        with use_backend(backend):
            assert select_largest(u, 1, signed=True).indices.item() == 5
