"""The papers' synthetic data, on the interfaces of `sae_lens.synthetic`."""

from __future__ import annotations

from collections.abc import Callable

from sae_lens.synthetic import SyntheticModel

from sae_lens_isae.synthetic.blind_mixing import (
    UniformSparseGenerator,
    blind_mixing_synthetic_model,
)
from sae_lens_isae.synthetic.mixture import mixture_atoms, mixture_synthetic_model
from sae_lens_isae.synthetic.signed import SignedSparseGenerator, signed_synthetic_model

GENERATORS: dict[str, Callable[..., SyntheticModel]] = {
    "iid": signed_synthetic_model,
    "mixture": mixture_synthetic_model,
    "blind_mixing": blind_mixing_synthetic_model,
}
"""By the names that `--activations synthetic:NAME` takes."""

__all__ = [
    "GENERATORS",
    "SignedSparseGenerator",
    "UniformSparseGenerator",
    "blind_mixing_synthetic_model",
    "mixture_atoms",
    "mixture_synthetic_model",
    "signed_synthetic_model",
]
