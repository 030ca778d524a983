"""The tokens that an atom promotes, against the weights of the models by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sae_lens.load_model import load_model
from transformer_lens import HookedTransformer, HookedTransformerConfig

from sae_lens_isae.contexts.promoted import promoted_tokens
from tests.conftest import D_IN
from tests.solvers.test_omp import unit_atoms

HOOK = "model.layers.1"


@pytest.fixture(scope="module")
def model(tiny_model):
    loaded = load_model("AutoModelForCausalLM", str(tiny_model[0]), device="cpu", hook_names=[HOOK])
    # a gain that changes the order of the tokens
    torch.nn.init.uniform_(loaded.model.model.norm.weight, 0.1, 3.0)
    return loaded


def test_tokens_are_those_whose_logits_an_atom_raises_and_lowers(model):
    atoms = unit_atoms(7, D_IN, 0).float()
    found = promoted_tokens(model, HOOK, atoms, n=3)
    gain, head = model.model.model.norm.weight, model.model.lm_head.weight
    effect = (atoms * gain) @ head.T
    assert torch.equal(found.raised, effect.topk(3).indices)
    assert torch.equal(found.lowered, (-effect).topk(3).indices)
    assert not torch.equal(found.raised, (atoms @ head.T).topk(3).indices)
    ((raised, lowered),) = found.of([5])
    assert raised == [model.tokenizer.decode([i]) for i in effect[5].topk(3).indices]
    assert lowered == [model.tokenizer.decode([i]) for i in (-effect[5]).topk(3).indices]


def test_a_little_of_an_atom_raises_its_tokens_most(model):
    """The logits of the running model, with the scale of the norm held."""
    atom = unit_atoms(1, D_IN, 3).float()
    found = promoted_tokens(model, HOOK, atom, n=1)
    x = torch.randn(1, 5, D_IN)
    norm, head = model.model.model.norm, model.model.lm_head
    scale = x.square().mean(-1, keepdim=True).sqrt()
    moved = head(norm.weight * (x + 1e-3 * atom) / scale) - head(norm(x))
    assert (moved.argmax(-1) == found.raised[0, 0]).all()
    assert (moved.argmin(-1) == found.lowered[0, 0]).all()


def test_a_transformer_with_a_layer_norm():
    cfg = HookedTransformerConfig(
        n_layers=1,
        d_model=D_IN,
        n_ctx=8,
        d_head=8,
        n_heads=2,
        act_fn="relu",
        d_vocab=30,
        normalization_type="LN",
        seed=0,
    )
    model = HookedTransformer(cfg)
    torch.nn.init.normal_(model.ln_final.w)
    torch.nn.init.normal_(model.ln_final.b)
    model.tokenizer = SimpleNamespace(batch_decode=lambda ids: [str(i) for (i,) in ids])
    atoms = unit_atoms(6, D_IN, 1).float()
    found = promoted_tokens(model, "blocks.0.hook_resid_post", atoms, n=4)
    centred = atoms - atoms.mean(-1, keepdim=True)
    effect = (centred * model.ln_final.w) @ model.unembed.W_U
    assert torch.equal(found.raised, effect.topk(4).indices)


def test_nothing_is_said_of_atoms_that_are_not_in_the_residual_stream(model):
    atoms = unit_atoms(7, D_IN, 0).float()
    for hook in ("model.layers.1.self_attn.q_proj", "blocks.1.attn.hook_z", None):
        assert promoted_tokens(model, hook, atoms) is None
    assert promoted_tokens(model, HOOK, unit_atoms(7, D_IN - 1, 0).float()) is None
