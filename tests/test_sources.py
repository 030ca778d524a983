"""Models as the evals run them."""

from __future__ import annotations

import pytest
import torch
from transformer_lens.utils import lm_cross_entropy_loss

from sae_lens_isae.sources import check_hook, in_bfloat16, load_language_model

HOOK = "model.layers.0"


def test_autocast_gives_float32_and_a_loss_of_its_logits(tiny_model):
    def load():
        return load_language_model(str(tiny_model[0]), "AutoModelForCausalLM", hook_names=[HOOK])

    tokens = torch.randint(3, 60, (4, 20), generator=torch.Generator().manual_seed(0))
    exact, cast = load(), in_bfloat16(load())
    with torch.no_grad():
        logits, loss = cast(tokens, return_type="both", loss_per_token=True)
        expected = exact(tokens, return_type="logits")
    assert logits.dtype == loss.dtype == torch.float32
    # in bfloat16 all the same
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, atol=0.02, rtol=0.05)
    # a loss that was itself rounded to bfloat16 would be off by 1%
    torch.testing.assert_close(loss, lm_cross_entropy_loss(logits, tokens, per_token=True))
    assert cast(tokens).dtype == torch.float32
    _, cache = cast.run_with_cache(tokens, names_filter=[HOOK], stop_at_layer=1)
    assert cache[HOOK].shape == (4, 20, 16)


def test_a_hook_that_is_not_there(tiny_model):
    model = load_language_model(str(tiny_model[0]), "AutoModelForCausalLM")
    check_hook(model, HOOK)
    with pytest.raises(ValueError, match=r"no hook 'model.layer.0'.*model\.layers\.0"):
        check_hook(model, "model.layer.0")
