"""What a latent is active on, against a search through all codes at once."""

from __future__ import annotations

import pytest
import torch

from sae_lens_isae import pairwise_identifiability
from sae_lens_isae.contexts.examples import N_MIDDLING, N_STRONGEST, LatentExamples
from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability.latents import TRUST_CODE_IOU, UNIQUE_COSINE
from sae_lens_isae.inputs.activation_source import ActivationSource
from sae_lens_isae.inputs.token_text import TokenText
from tests.conftest import D_IN
from tests.inputs.test_linear_sae import stock_sae


@pytest.fixture
def codes():
    torch.manual_seed(0)
    codes = torch.randn(300, 6) * (torch.rand(300, 6) < 0.4)
    codes[:, 1] = codes[:, 1].abs()
    codes[:, 2] = 0
    codes[10:, 3] = 0
    return codes


@pytest.mark.parametrize("size", [1, 7, 300])
def test_the_strongest_of_each_sign_are_the_largest_of_all(codes, size):
    examples = LatentExamples(6)
    rows = torch.arange(300) * 2
    for batch, numbers in zip(codes.split(size), rows.split(size), strict=True):
        examples.add(batch, numbers)
    for latent in range(6):
        found = examples.of(latent)
        values = [example.activation for example in found]
        assert values == sorted(values, reverse=True)
        column = codes[:, latent]
        assert all(column[e.row // 2] == e.activation for e in found)
        assert len({e.row for e in found}) == len(found)
        for sign in (1, -1):
            largest = (sign * column).topk(N_STRONGEST).values
            wanted = [float(v) for v in largest if v > 0]
            ours = sorted((sign * v for v in values if sign * v > 0), reverse=True)
            assert ours[: len(wanted)] == pytest.approx(wanted)
        n_active = int((column != 0).sum())
        strongest = sum(min(N_STRONGEST, int((s * column > 0).sum())) for s in (1, -1))
        assert len(found) == min(n_active, strongest + N_MIDDLING)


def test_the_middling_ones_are_near_half_of_the_strongest():
    # all of one sign, evenly spread: 16 are drawn, and the three nearest to 0.5 stay
    column = torch.linspace(0.01, 1, 1000)[torch.randperm(1000)]
    examples = LatentExamples(1)
    examples.add(column[:, None], torch.arange(1000))
    middling = [e.activation for e in examples.of(0)][N_STRONGEST:]
    assert len(middling) == N_MIDDLING
    assert all(0.2 < value < 0.8 for value in middling)


def test_a_report_says_on_which_tokens(tmp_path):
    saes = {name: stock_sae("topk", seed=seed) for seed, name in enumerate("ab")}
    torch.manual_seed(0)
    x = torch.randn(60, D_IN)
    x[::7] = 0
    text = TokenText(
        torch.arange(64).reshape(4, 16), torch.arange(3, 63), {i: f" w{i}" for i in range(64)}
    )
    source = ActivationSource(60, D_IN, "x", lambda: iter([x]), lambda: text)
    report = pairwise_identifiability(saes, source, n_oracle_samples=0, chance=False)
    shown = 0
    codes = saes["a"].encode(x) * saes["a"].W_dec.norm(dim=-1)
    for latent in range(saes["a"].cfg.d_sae):
        table = report.contexts("a", latent)
        for row, code, before, token in table[["row", "code", "before", "token"]].itertuples(
            index=False
        ):
            assert row % 7  # all-zero rows keep their numbers and are not shown
            assert code == pytest.approx(float(codes[row, latent]), rel=1e-4)
            assert token == f" w{row + 3}"
            assert before.split() == [f"w{i}" for i in range((row + 3) // 16 * 16, row + 3)]
            shown += 1
    assert shown > 100
    with pytest.raises(InputError, match="there is no SAE 'c'"):
        report.contexts("c", 0)
    with pytest.raises(InputError, match="has latents 0 to"):
        report.contexts("a", 40)


def test_trust_follows_from_the_other_columns():
    sae = stock_sae("topk")
    near = stock_sae("topk")
    with torch.no_grad():
        sae.b_enc[5] = near.b_enc[5] = -1e6
        # found, but never active there
        near.b_enc[7] = -1e6
        # atoms that no other is like
        near.W_dec[9] = torch.linalg.qr(near.W_dec.T, mode="complete").Q[:, -1]
    report = pairwise_identifiability(
        {"a": sae, "b": near}, torch.randn(400, D_IN), n_oracle_samples=0, chance=False
    )
    a = report.latents.query("sae == 'a'").set_index("latent")
    assert a.trust[5] == "dead"
    assert a.trust[7] == "doubtful"
    of_both = a.drop([5, 7, 9])
    together = of_both["mean_code_iou"] >= TRUST_CODE_IOU
    assert together.any()
    assert (of_both[together].trust == "trusted").all()
    for _, row in report.latents.iterrows():
        if row.trust == "unique":
            assert row.max_cosine < UNIQUE_COSINE
        if row.trust == "trusted":
            assert row.n_found == 1
            assert row.mean_code_iou >= TRUST_CODE_IOU
