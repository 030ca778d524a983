"""Where idle latents go, against planted concepts and a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from sae_lens_isae.architectures import resampling
from sae_lens_isae.architectures.resampling import (
    choose_moves,
    duplicates,
    move_latents,
    shared_directions,
)
from tests.conftest import D_IN, D_SAE, NORMALIZATIONS, Activations, isae_config, make_sae


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


def planted(n_samples: int, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Concepts in 60 dimensions, and signed k-sparse codes over them."""
    generator = torch.Generator().manual_seed(seed)
    concepts = normalize(torch.randn(80, 60, generator=generator), dim=-1)
    chosen = torch.rand(n_samples, 80, generator=generator).topk(k).indices
    signs = torch.randint(2, (n_samples, k), generator=generator) * 2.0 - 1
    size = 1 + torch.rand(n_samples, k, generator=generator)
    return concepts, torch.zeros(n_samples, 80).scatter(-1, chosen, signs * size)


def sparse(codes: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    indices = codes.abs().topk(k).indices
    return indices, codes.gather(-1, indices)


@pytest.mark.parametrize("signed", [True, False])
def test_concepts_come_out_of_residuals_that_mix_several(signed):
    concepts, codes = planted(n_samples=2000, k=2, seed=0)
    codes = codes if signed else codes.abs()
    shared = shared_directions(codes @ concepts, signed, n_directions=40, n_members=20)
    cosine = shared.direction @ concepts.T
    nearest = (cosine.abs() if signed else cosine).amax(-1)
    # a single residual has a cosine of about 0.7 with each of its concepts
    assert nearest.median() > 0.9
    assert (nearest > 0.9).sum() >= 30


def test_iterations_are_those_of_a_plain_loop():
    generator = torch.Generator().manual_seed(3)
    residual = torch.randn(30, 8, generator=generator)
    shared = shared_directions(residual, signed=True, n_directions=4, n_members=6)
    for i in range(4):
        order = sorted(range(30), key=lambda b: -residual[b].norm())
        direction = residual[order[i]] / residual[order[i]].norm()
        for _ in range(5):
            fit = [float(residual[b] @ direction) for b in range(30)]
            best = sorted(range(30), key=lambda b: -abs(fit[b]))[:6]
            total = sum(fit[b] * residual[b] for b in best)
            direction = total / total.norm()
        torch.testing.assert_close(shared.direction[i], direction)
        assert set(shared.members[i].tolist()) == set(best)


def test_an_idle_latent_takes_a_concept_that_no_latent_has():
    concepts, codes = planted(n_samples=800, k=3, seed=1)
    dictionary = concepts.clone()
    dictionary[7] = normalize(torch.ones(60), dim=0)
    found = codes.clone()
    found[:, 7] = 0
    residual = codes[:, 7:8] * concepts[7]
    idle = torch.arange(80) == 7
    direction, moves = choose_moves(idle, residual, *sparse(found, 3), dictionary, signed=True)
    assert moves.tolist() == idle.tolist()
    assert abs(direction[7] @ concepts[7]) > 0.999


def test_an_idle_latent_takes_one_of_two_merged_concepts():
    concepts, codes = planted(n_samples=800, k=3, seed=2)
    concepts[1] = normalize(0.8 * concepts[0] + concepts[1], dim=0)
    both = normalize(concepts[0] + concepts[1], dim=0)
    dictionary = concepts.clone()
    dictionary[0], dictionary[1] = both, normalize(torch.ones(60), dim=0)
    found = codes.clone()
    found[:, 0] = codes[:, 0] * (both @ concepts[0]) + codes[:, 1] * (both @ concepts[1])
    found[:, 1] = 0
    residual = codes @ concepts - found @ dictionary
    idle = torch.arange(80) == 1
    direction, moves = choose_moves(idle, residual, *sparse(found, 3), dictionary, signed=True)
    assert moves.tolist() == idle.tolist()
    # their difference is what many residuals share, and no concept
    difference = normalize(concepts[0] - concepts[1], dim=0)
    assert abs(direction[1] @ difference) < 0.5
    assert (direction[1] @ concepts[:2].T).abs().max() > 0.99


def test_what_a_latent_at_work_has_already_is_left_alone():
    """A code that is too small leaves residuals along an atom that exists."""
    concepts, codes = planted(n_samples=800, k=3, seed=4)
    found = codes.clone()
    found[:, 7] *= 0.7
    dictionary = torch.cat([concepts, normalize(torch.ones(1, 60), dim=-1)])
    residual = (codes - found) @ concepts
    idle = torch.arange(81) == 80
    _, moves = choose_moves(idle, residual, *sparse(found, 3), dictionary, signed=True)
    assert not moves.any()
    # the same residuals count where that latent does not work
    idle[7] = True
    direction, moves = choose_moves(idle, residual, *sparse(found, 3), dictionary, signed=True)
    assert moves.tolist() == (torch.arange(81) == 7).tolist()
    assert abs(direction[7] @ concepts[7]) > 0.999


def test_few_move_at_once_and_only_idle_ones():
    concepts, codes = planted(n_samples=800, k=3, seed=5)
    nothing = torch.zeros_like(codes)
    elsewhere = normalize(torch.randn(80, 60), dim=-1)
    for idle in (torch.ones(80, dtype=torch.bool), torch.arange(80) % 2 == 1):
        _, moves = choose_moves(idle, codes @ concepts, *sparse(nothing, 3), elsewhere, signed=True)
        assert 0 < moves.sum() <= 80 // 16
        assert not (moves & ~idle).any()
    none = torch.zeros(80, dtype=torch.bool)
    _, moves = choose_moves(none, codes @ concepts, *sparse(nothing, 3), elsewhere, signed=True)
    assert not moves.any()


@pytest.mark.parametrize("signed", [True, False])
def test_nothing_left_over_moves_nothing(signed):
    _, codes = planted(n_samples=50, k=3, seed=6)
    residual = torch.zeros(50, 60)
    idle = torch.ones(80, dtype=torch.bool)
    dictionary = normalize(torch.randn(80, 60), dim=-1)
    direction, moves = choose_moves(idle, residual, *sparse(codes, 3), dictionary, signed)
    assert not moves.any()
    assert direction.isfinite().all()


def test_only_what_moves_is_touched():
    W_dec, W_enc, direction = torch.randn(5, 3), torch.randn(3, 5), torch.randn(5, 3)
    moves = torch.tensor([False, True, False, False, True])
    dec, enc = W_dec.clone(), W_enc.clone()
    move_latents(moves, direction, enc, dec)
    assert torch.equal(dec, torch.where(moves[:, None], direction, W_dec))
    assert torch.equal(enc, torch.where(moves, direction.T, W_enc))


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("variant", ["AbsTopK", "iSAE-ME full"])
def test_idle_latents_of_an_sae_move(monkeypatch, variant, normalization):
    """In the space that the SAE codes in, whatever it does to its input before."""
    sae = make_sae(isae_config(variant, normalize_activations=normalization))
    x = next(Activations(0.5))
    # what half of the samples share, and no latent stands for
    missing = normalize(torch.randn(D_IN, generator=torch.Generator().manual_seed(3)), dim=0)
    x[::2] += 40 * torch.randn(len(x[::2]), 1).sign() * missing
    sae.initialize_bias(x)
    dead = torch.arange(D_SAE) < 2
    with torch.no_grad():
        sae.W_dec[5] = -sae.W_dec[3]
        sae.W_enc[:, dead] = 0
        if variant == "iSAE-ME full":
            sae.S.fill_(0.01)
        # the other latents see nothing of the missing direction
        atoms = sae.W_dec - (sae.W_dec @ missing)[:, None] * missing
        sae.W_dec.copy_(normalize(atoms, dim=-1))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.W_enc[:, dead] = 0
        before = {name: value.clone() for name, value in sae.state_dict().items()}
    idle = dead | (torch.arange(D_SAE) == 5)
    monkeypatch.setattr(resampling, "_LEAST_STAY", 1)
    moved = sae.resample(dead, x)
    assert moved.any()
    assert not (moved & ~idle).any()
    assert (sae.W_dec[moved] @ missing).abs().max() > 0.95
    torch.testing.assert_close(sae.W_enc[:, moved], sae.W_dec[moved].T)
    assert torch.equal(sae.W_dec[~moved], before["W_dec"][~moved])
    assert torch.equal(sae.W_enc[:, ~moved], before["W_enc"][:, ~moved])
    if variant == "iSAE-ME full":
        assert torch.equal(sae.S == 0, moved | moved[:, None])
