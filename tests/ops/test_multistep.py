"""The recursion alone."""

from __future__ import annotations

import torch
from sae_lens.saes.abstopk_sae import AbsTopK

from sae_lens_isae.ops.multistep import multistep_encode


def test_last_pre_activation_yields_the_codes():
    linear_pre, S = torch.randn(5, 12), 0.3 * torch.randn(12, 12)
    activation = AbsTopK(3)
    codes, pre = multistep_encode(linear_pre, lambda z: z @ S, activation, n_steps=4)
    torch.testing.assert_close(codes, activation(pre))
    three, _ = multistep_encode(linear_pre, lambda z: z @ S, activation, n_steps=3)
    torch.testing.assert_close(pre, three @ S + linear_pre)


def test_orthonormal_dictionary_is_a_fixed_point():
    """With S = I - W_dec W_enc = 0 the first codes are final."""
    linear_pre = torch.randn(5, 12)
    once, _ = multistep_encode(linear_pre, lambda z: z * 0, AbsTopK(3), n_steps=1)
    often, _ = multistep_encode(linear_pre, lambda z: z * 0, AbsTopK(3), n_steps=9)
    assert torch.equal(once, often)
