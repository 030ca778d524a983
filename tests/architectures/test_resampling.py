"""Where idle latents go, against small cases worked out by hand and a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from sae_lens_isae.architectures import resampling
from sae_lens_isae.architectures.resampling import duplicates, move_latents, take_over
from tests.conftest import D_SAE, NORMALIZATIONS, Activations, isae_config, make_sae


@pytest.mark.parametrize("block", [1, 3, 4096])
def test_the_first_of_two_like_atoms_stays(monkeypatch, block):
    monkeypatch.setattr(resampling, "_BLOCK", block)
    a, b, c = torch.eye(4)[:3]
    nearly_b = normalize(b + 0.1 * c, dim=0)
    atoms = torch.stack([a, b, -a, nearly_b, c, a, normalize(a + b, dim=0)])
    assert duplicates(atoms, signed=True).tolist() == [
        False,
        False,
        *[True] * 2,
        False,
        True,
        False,
    ]
    # without signs an atom and its opposite share a concept
    assert duplicates(atoms, signed=False).tolist() == [i in (3, 5) for i in range(7)]


def merged_concepts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two concepts that share latent 0; latent 1 serves a third one, latents 2 and 3 do nothing."""
    first, second, third, unused = torch.eye(4)
    dictionary = torch.stack([normalize(first + second, dim=0), third, unused, -unused])
    x = torch.stack([2 * first, -1.5 * second, 3 * third, first + third])
    acts = torch.zeros(4, 4)
    acts[:, :2] = x @ dictionary[:2].T
    return dictionary, x, acts


def test_an_idle_latent_becomes_one_of_two_merged_concepts():
    dictionary, x, acts = merged_concepts()
    idle = torch.tensor([False, False, False, True])
    direction, moves = take_over(
        idle, x - acts @ dictionary, acts, dictionary, 1 / x.norm(dim=-1, keepdim=True)
    )
    assert moves.tolist() == [False, False, False, True]
    torch.testing.assert_close(direction[3], torch.eye(4)[0])


def test_nothing_is_taken_from_idle_or_resting_latents():
    dictionary, x, acts = merged_concepts()
    residual, scale = x - acts @ dictionary, torch.ones(4, 1)
    # 2 rests: of the three idle ones only the first finds a latent at work
    _, moves = take_over(
        torch.tensor([True, False, False, True]), residual, acts, dictionary, scale
    )
    assert moves.tolist() == [True, False, False, False]
    _, moves = take_over(torch.ones(4, dtype=torch.bool), residual, acts, dictionary, scale)
    assert not moves.any()
    _, moves = take_over(torch.zeros(4, dtype=torch.bool), residual, acts, dictionary, scale)
    assert not moves.any()


def test_the_worst_are_relieved_first_by_relative_error():
    """Against a loop over latents and samples."""
    generator = torch.Generator().manual_seed(0)
    dictionary = normalize(torch.randn(12, 6, generator=generator), dim=-1)
    x = torch.randn(20, 6, generator=generator) * torch.logspace(-2, 2, 20)[:, None]
    acts = x @ dictionary.T * (torch.rand(20, 12, generator=generator) < 0.3)
    acts[:, 7] = 0
    idle = torch.arange(12) % 5 == 2  # 2 and 7
    residual = x - acts @ dictionary
    direction, moves = take_over(idle, residual, acts, dictionary, 1 / x.norm(dim=-1, keepdim=True))
    error, weight = ((t.T / x.norm(dim=-1)) ** 2 for t in (residual, acts))
    blame = {
        j: sum(weight[j, b] * error[:, b].sum() for b in range(20)) / weight[j].sum()
        for j in range(12)
        if j not in (2, 7)
    }
    worst = sorted(blame, key=lambda j: -blame[j])[:2]
    for i, j in zip((2, 7), worst, strict=True):
        b = acts[:, j].abs().argmax()
        others = sum(acts[b, m] * dictionary[m] for m in range(12) if m != j)
        torch.testing.assert_close(direction[i], normalize(x[b] - others, dim=0))
    assert moves.tolist() == idle.tolist()


def test_only_what_moves_is_touched():
    W_dec, W_enc, direction = torch.randn(5, 3), torch.randn(3, 5), torch.randn(5, 3)
    moves = torch.tensor([False, True, False, False, True])
    dec, enc = W_dec.clone(), W_enc.clone()
    move_latents(moves, direction, enc, dec)
    assert torch.equal(dec, torch.where(moves[:, None], direction, W_dec))
    assert torch.equal(enc, torch.where(moves, direction.T, W_enc))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("variant", ["AbsTopK", "iSAE-ME full"])
def test_idle_latents_of_an_sae_move(variant, normalization):
    """In the space that the SAE codes in, whatever it does to its input before."""
    sae = make_sae(isae_config(variant, normalize_activations=normalization))
    x = next(Activations(0.5))
    sae.initialize_bias(x)
    dead = torch.arange(D_SAE) < 2
    with torch.no_grad():
        sae.W_dec[5] = -sae.W_dec[3]
        sae.W_enc[:, dead] = 0
        if variant == "iSAE-ME full":
            sae.S.fill_(0.01)
        before = {name: value.clone() for name, value in sae.state_dict().items()}
        acts = sae.encode(x)
        centred = sae.process_sae_in(x)
    direction, _ = take_over(
        idle := dead | (torch.arange(D_SAE) == 5),
        centred - acts @ before["W_dec"],
        acts,
        before["W_dec"],
        1 / (centred + sae.b_dec).norm(dim=-1, keepdim=True),
    )
    assert torch.equal(sae.resample(dead, x), idle)
    torch.testing.assert_close(sae.W_dec[idle], direction[idle])
    torch.testing.assert_close(sae.W_enc[:, idle], direction[idle].T)
    assert torch.equal(sae.W_dec[~idle], before["W_dec"][~idle])
    assert torch.equal(sae.W_enc[:, ~idle], before["W_enc"][:, ~idle])
    if variant == "iSAE-ME full":
        assert torch.equal(sae.S == 0, idle | idle[:, None])
