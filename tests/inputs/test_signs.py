"""Which SAEs have codes with signs, and the code of the non-negative form."""

from __future__ import annotations

import pytest
import torch

from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.inputs.signs import has_signed_codes, unfold_signs
from tests.conftest import isae_config, make_sae


@pytest.mark.parametrize("variant", ["TopK", "AbsTopK", "iSAE", "iSAE-ME", "iSAE-ME topk"])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_signs_of_the_variants(variant, offset):
    """Also where the bias is far larger than what varies."""
    sae = make_sae(isae_config(variant)).eval()
    with torch.no_grad():
        sae.b_dec.add_(offset)
    assert has_signed_codes(LinearSAE(sae)) == (variant not in ("TopK", "iSAE-ME topk"))


def test_unfolding_by_hand():
    z = torch.tensor([[2.0, 0.0, -3.0]])
    assert unfold_signs(z).tolist() == [[2, 0, 0, 0, 0, 3]]
