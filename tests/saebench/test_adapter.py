"""SAEs as SAEBench sees them: for every architecture, with and without signs."""

from __future__ import annotations

import pytest
import torch

from sae_lens_isae.inputs.language_models import hook_layer
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.inputs.signs import has_signed_codes
from sae_lens_isae.saebench.adapter import SAEBenchAdapter
from tests.conftest import D_IN, D_SAE
from tests.inputs.test_linear_sae import ARCHITECTURES, NORMALIZATIONS, stock_sae

SIGNED = {"abstopk", "isae_me"}


def named(architecture, normalization="none"):
    sae = stock_sae(architecture, normalization)
    sae.cfg.metadata.model_name = "some-model"
    sae.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    return sae


def masked_batch():
    """Activations [texts, tokens, d_in] of which SAEBench has zeroed the padding."""
    x = 3 * torch.randn(4, 6, D_IN, generator=torch.Generator().manual_seed(1))
    x[1, 3:] = 0
    x[3, 1:] = 0
    return x


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("form", ["as_is", "non_negative"])
def test_masked_tokens_and_repeated_decodes(architecture, normalization, form):
    """What SCR and TPP do: encode a padded batch, decode, ablate, decode again."""
    presented, x = SAEBenchAdapter(named(architecture, normalization), form), masked_batch()
    z = presented.encode(x)
    assert torch.equal(
        z.view(24, -1),
        SAEBenchAdapter(named(architecture, normalization), form).encode(x.view(24, -1)),
    )
    assert z.isfinite().all()
    first = presented.decode(z)
    ablated = z.clone()
    ablated[..., z[0, 0].argmax()] = 0
    changed = presented.decode(ablated)
    assert first.isfinite().all()
    assert changed.isfinite().all()
    assert torch.equal(presented.decode(z), first)
    # padding is coded like any other token, and decoded so where a change treats it differently
    alone = SAEBenchAdapter(named(architecture, normalization), form)
    torch.testing.assert_close(z[1, 4], alone.encode(torch.zeros(1, D_IN))[0])
    uneven = z.clone()
    uneven[1, 4] *= 2
    torch.testing.assert_close(
        presented.decode(uneven)[1, 4] - first[1, 4],
        z[1, 4] @ presented.W_dec,
        atol=1e-4,
        rtol=1e-4,
    )
    # linear in the code: the change is the ablated latents' own contribution
    torch.testing.assert_close(
        first - changed, (z - ablated) @ presented.W_dec, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_both_forms_rebuild_what_sae_lens_rebuilds(architecture, normalization):
    sae, x = named(architecture, normalization), 3 * torch.randn(20, D_IN)
    expected = sae(x)
    as_is, split = SAEBenchAdapter(sae, "as_is"), SAEBenchAdapter(sae, "non_negative")
    z, z_split = as_is.encode(x), split.encode(x)
    torch.testing.assert_close(as_is.decode(z), expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(split.decode(z_split), as_is.decode(z), atol=1e-5, rtol=1e-5)
    assert (z_split >= 0).all()
    assert torch.equal((z_split != 0).sum(-1), (z != 0).sum(-1))
    torch.testing.assert_close(z_split.sum(-1), z.abs().sum(-1))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_signed_codes_are_unfolded(architecture):
    sae = named(architecture)
    assert has_signed_codes(LinearSAE(sae)) == (architecture in SIGNED)
    split = SAEBenchAdapter(sae, "non_negative")
    widths = (len(split.W_dec), split.W_enc.shape[1], split.cfg.d_sae)
    assert set(widths) == {2 * D_SAE if architecture in SIGNED else D_SAE}
    assert split.form == ("non_negative" if architecture in SIGNED else "as_is")
    assert SAEBenchAdapter(sae, "as_is").form == "as_is"
    torch.testing.assert_close(split.W_dec.norm(dim=-1), torch.ones(len(split.W_dec)))


def test_a_batch_is_encoded_once_until_it_changes(monkeypatch):
    """SCR and TPP encode the same slices for every number of latents, and ablate codes in place."""
    encode, calls = LinearSAE.encode, []

    def counted(self, x):
        calls.append(len(x))
        return encode(self, x)

    presented = SAEBenchAdapter(named("abstopk"))
    x = torch.randn(6, 4, D_IN)
    monkeypatch.setattr(LinearSAE, "encode", counted)
    first = presented.encode(x[2:4])
    first[..., 0] = 7
    second = presented.encode(x[2:4])
    assert calls == [8]
    assert (second[..., 0] != 7).all()
    presented.encode(x[3:5])
    x[3] *= 2
    changed = presented.encode(x[2:4])
    assert calls == [8, 8, 8]
    torch.testing.assert_close(changed, SAEBenchAdapter(named("abstopk")).encode(x[2:4].clone()))
    # another tensor at the address of one that is gone is not taken for it
    for _ in range(100):
        some = torch.randn(2, 4, D_IN)
        expected = SAEBenchAdapter(named("abstopk")).encode(some.clone())
        assert torch.equal(presented.encode(some), expected)
    with torch.inference_mode():
        some = torch.randn(5, D_IN)
        presented.encode(some)
        some *= 2
        torch.testing.assert_close(
            presented.encode(some), SAEBenchAdapter(named("abstopk")).encode(some.clone())
        )


@pytest.mark.parametrize("form", ["as_is", "non_negative"])
def test_activations_keep_their_type(form):
    presented = SAEBenchAdapter(named("abstopk"), form)
    z = presented.encode(masked_batch().bfloat16())
    assert z.dtype == presented.decode(z).dtype == torch.bfloat16


def test_run_time_normalisation_decodes_the_last_batch_only():
    presented = SAEBenchAdapter(named("topk", "constant_norm_rescale"))
    z = presented.encode(torch.randn(5, D_IN))
    presented.encode(torch.randn(7, D_IN))
    with pytest.raises(ValueError, match="decode the batch encoded last"):
        presented.decode(z)


def test_what_names_no_hook_or_model():
    sae = named("topk")
    sae.cfg.metadata.model_name = None
    assert SAEBenchAdapter(sae, model_name="given").cfg.model_name == "given"
    with pytest.raises(ValueError, match="--model"):
        SAEBenchAdapter(sae)
    sae.cfg.metadata.hook_name = None
    with pytest.raises(ValueError, match="names no hook"):
        SAEBenchAdapter(sae, model_name="given")
    assert hook_layer("model.layers.12.mlp") == 12
    with pytest.raises(ValueError, match="names no block"):
        hook_layer("hook_embed")
    with pytest.raises(ValueError, match="this SAE is on cpu"):
        SAEBenchAdapter(named("topk")).to("cuda")
