"""One SAE from the latents that several have in common, where it is known which these are."""

from __future__ import annotations

import pytest
import torch
from sae_lens import SAE, AbsTopKSAE, AbsTopKSAEConfig, TopKSAE, TopKSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from safetensors.torch import save_file
from torch.nn.functional import normalize

from sae_lens_isae import LinearSAE, consensus_sae, pairwise_identifiability
from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability import recurring_latents
from sae_lens_isae.training.refinement import refine
from tests.conftest import complaint, isae_config, make_sae, run_isae, train_sae

D_IN, D_SAE, N_SHARED, K = 32, 40, 25, 3


def seeds(n=3, noise=0.05, signed=True):
    """SAEs that share 25 directions, disturbed, in another order and with other signs each."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    shared = normalize(draw(N_SHARED, D_IN), dim=-1)
    saes, orders = {}, []
    cls, config = (AbsTopKSAE, AbsTopKSAEConfig) if signed else (TopKSAE, TopKSAEConfig)
    for seed in range(n):
        atoms = torch.cat([shared + noise * draw(N_SHARED, D_IN) / D_IN**0.5, draw(15, D_IN)])
        order = torch.randperm(D_SAE, generator=generator)
        flips = draw(D_SAE).sign() if signed else torch.ones(D_SAE)
        sae = cls(config(d_in=D_IN, d_sae=D_SAE, k=K))
        sae.W_dec.data = normalize(atoms, dim=-1)[order] * flips[:, None]
        sae.W_enc.data = sae.W_dec.data.T.clone() * 0.8
        sae.b_dec.data = torch.full((D_IN,), float(seed))
        saes[f"seed_{seed}"] = sae
        orders.append(order)
    return saes, shared, orders


@pytest.mark.parametrize("signed", [True, False])
def test_it_finds_what_all_have_and_nothing_else(signed):
    saes, _, orders = seeds(signed=signed)
    linear = {name: LinearSAE(sae) for name, sae in saes.items()}
    found = recurring_latents(linear, at_least=2)
    assert found.members.shape == (N_SHARED, 3)
    origins = torch.stack([order[m] for order, m in zip(orders, found.members.T, strict=True)], 1)
    assert (origins == origins[:, :1]).all()
    assert sorted(origins[:, 0].tolist()) == list(range(N_SHARED))
    assert (found.cosine > 0.99).all()


def test_means_are_nearer_to_the_truth_than_any_seed():
    saes, shared, _ = seeds(noise=0.2)
    consensus = consensus_sae(saes)
    assert (consensus.cfg.d_sae, consensus.cfg.architecture()) == (N_SHARED, "abstopk")
    best = (normalize(consensus.W_dec, dim=-1) @ shared.T).abs().max(0).values
    for sae in saes.values():
        of_one = (normalize(sae.W_dec, dim=-1) @ shared.T).abs().max(0).values
        assert best.mean() > of_one.mean()
    torch.testing.assert_close(consensus.W_dec.norm(dim=-1), torch.ones(N_SHARED))
    # encoder and decoder kept one sign
    assert (consensus.W_enc.T * consensus.W_dec).sum(-1).min() > 0.7
    assert consensus.b_dec.tolist() == [1.0] * D_IN
    assert consensus.cfg.metadata.consensus_of == ["seed_0", "seed_1", "seed_2"]
    assert consensus.cfg.metadata.seed is None


def test_two_of_three_are_enough_unless_all_are_asked_for():
    saes, _, orders = seeds()
    lost = int((orders[0] == 0).nonzero())
    saes["seed_0"].W_dec.data[lost] = normalize(torch.randn(D_IN), dim=0)
    assert consensus_sae(saes).cfg.d_sae == N_SHARED
    assert consensus_sae(saes, at_least=3).cfg.d_sae == N_SHARED - 1


def test_disjoint_groups_agree_better_than_their_seeds():
    saes, _, _ = seeds(6, noise=0.3)
    names = list(saes)
    one = consensus_sae({n: saes[n] for n in names[:3]}, found_cosine=0.8)
    other = consensus_sae({n: saes[n] for n in names[3:]}, found_cosine=0.8)
    x = torch.randn(200, D_IN)
    (seeds_pair,) = pairwise_identifiability(
        {n: saes[n] for n in (names[0], names[3])}, x, n_oracle_samples=0, progress=False
    ).pairs
    (pair,) = pairwise_identifiability(
        {"one": one, "other": other}, x, n_oracle_samples=0, progress=False
    ).pairs
    assert pair.dcs > seeds_pair.dcs + 0.1


def test_thresholds_are_averaged_with_their_latents():
    saes = {}
    for seed, order in enumerate((torch.arange(8), torch.arange(8).flip(0))):
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=8, d_sae=8))
        sae.W_dec.data = torch.eye(8)[order]
        sae.W_enc.data = torch.eye(8)[:, order]
        sae.threshold.data = (torch.arange(8.0) + 2 * seed)[order]
        saes[str(seed)] = sae
    found = consensus_sae(saes)
    latents = found.W_dec.argmax(-1)
    assert torch.equal(found.threshold.data, latents + 1.0)


@pytest.mark.parametrize("variant", ["TopK", "iSAE-LS", "iSAE-ME"])
def test_from_the_command_line_with_more_training(variant, tmp_path, capsys):
    names = []
    for seed in range(2):
        sae = train_sae(isae_config(variant), seed=0, n_steps=10 + seed)
        sae.save_inference_model(tmp_path / f"seed_{seed}")
        names.append(tmp_path / f"seed_{seed}")
    x = torch.randn(300, 16)
    save_file({"activations": x}, tmp_path / "x.safetensors")
    common = ["consensus", *names, "--activations", tmp_path / "x.safetensors", "--batch", 64]
    run_isae(*common, "--steps", 0, "--out", tmp_path / "means")
    run_isae(*common, "--steps", 30, "--out", tmp_path / "refined")
    assert "latents of 40 recur" in capsys.readouterr().out
    means, refined = (SAE.load_from_disk(tmp_path / name) for name in ("means", "refined"))
    torch.testing.assert_close(refined.W_dec, means.W_dec, rtol=1e-4, atol=1e-5)
    assert ((refined(x) - x).square().sum()) < ((means(x) - x).square().sum())
    assert refined.cfg.architecture() == means.cfg.architecture()


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (lambda saes: dict(list(saes.items())[:1]), {}, "two or more"),
        (lambda saes: saes, {"at_least": 1}, "at_least"),
        (lambda saes: saes, {"at_least": 4}, "at_least"),
        (lambda saes: saes, {"found_cosine": 0.0}, "cosine"),
        (lambda saes: saes, {"found_cosine": 1.0}, "lower --at-least or --cosine"),
        (lambda saes: {**saes, "t": seeds(1, signed=False)[0]["seed_0"]}, {}, "trained alike"),
        (lambda saes: {**saes, "t": make_sae(isae_config("iSAE"))}, {}, "training SAE"),
    ],
)
def test_what_has_no_consensus_is_refused(change, settings, message):
    with pytest.raises(InputError, match=message):
        consensus_sae(change(seeds()[0]), **settings)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--steps", -1], "steps must be >= 1"),
        (["--batch", 0], "batch must be >= 1"),
        (["--lr", "nan"], "lr must be"),
    ],
)
def test_settings_are_checked_before_anything_is_read(flags, said, tmp_path, monkeypatch, capsys):
    command = ["consensus", "a", "b", "--out", "c", *flags]
    assert said in complaint(command, tmp_path, monkeypatch, capsys)


def test_an_architecture_that_is_not_trained_here_is_not_refined():
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=8, d_sae=8))
    with pytest.raises(InputError, match="--steps 0"):
        refine(sae, torch.randn(10, 8))


def test_a_folder_is_asked_for(tmp_path, monkeypatch, capsys):
    assert "--out" in complaint(["consensus", "a", "b"], tmp_path, monkeypatch, capsys)
