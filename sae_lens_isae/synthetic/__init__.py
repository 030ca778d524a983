"""The papers' synthetic data, on the interfaces of `sae_lens.synthetic`."""

from __future__ import annotations

from sae_lens_isae.synthetic.signed import SignedSparseGenerator, signed_synthetic_model

__all__ = ["SignedSparseGenerator", "signed_synthetic_model"]
