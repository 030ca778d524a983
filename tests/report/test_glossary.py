"""Every number that a report prints is explained on its page."""

from __future__ import annotations

import pytest
import torch

from sae_lens_isae import audit, pairwise_identifiability
from sae_lens_isae.evals.tables import _FIXED
from sae_lens_isae.recoding.tables import _MEASURES
from sae_lens_isae.report.glossary import AUDIT, BENCH, PAIRWISE, RECODE
from tests.conftest import D_IN
from tests.inputs.test_linear_sae import stock_sae

NAMES = {"SAE", "architecture", "latents", "pair", "codes", "2nd", "3rd", "4th"}


def explained(header: str, glossary: dict[str, str]) -> bool:
    """By its own name, or with a number or a kind of codes before or after it."""
    return any(header in (name, f"{name} 5", f"{name} 20") for name in glossary)


def test_pairwise():
    saes = [stock_sae("abstopk", seed=seed) for seed in (0, 1)]
    report = pairwise_identifiability(saes, torch.randn(50, D_IN), n_oracle_samples=10)
    for table in report.tables():
        for header in set(table.headers) - NAMES:
            assert explained(header, PAIRWISE), header


def test_audit():
    _, numbers = audit(stock_sae("abstopk"), torch.randn(200, D_IN)).tables()
    for name, *_ in numbers.rows:
        known = name in {*AUDIT, *PAIRWISE, *NAMES} or name.startswith("pairs with delta <")
        assert known, name


@pytest.mark.parametrize("header", _MEASURES.values())
def test_recode(header):
    assert explained(header, RECODE)


@pytest.mark.parametrize("column", _FIXED, ids=lambda c: c.header)
def test_bench(column):
    assert explained(column.header, BENCH) or column.header.startswith("probes AUC")
