"""Damaged results are named; a bug of ours keeps its traceback."""

from __future__ import annotations

import pytest

from isae_cli.app import main
from sae_lens_isae.identifiability import AuditReport
from tests.conftest import run_isae

DATA = ("--activations", "x.safetensors")


@pytest.mark.parametrize("damage", [b"[]", b"", b"{", b'[{"x": 1}]'])
def test_a_damaged_part_of_a_study_is_named(damage, place, said, monkeypatch):
    monkeypatch.chdir(place)
    quick = ("--gd-samples", 2, "--gd-starts", 1, "--noise-samples", 2)
    run_isae("recode", "a", *DATA, "--samples", 20, *quick)
    (part,) = place.rglob("agreement.json")
    part.write_bytes(damage)
    sentence = said("recode", "a", *DATA, "--samples", 20, *quick)
    assert "agreement.json is damaged" in sentence
    assert "delete it" in sentence


@pytest.mark.parametrize("bug", [ValueError("a bug"), KeyError("x"), OSError("odd"), TypeError()])
def test_a_bug_keeps_its_traceback(bug, place, monkeypatch):
    """Only what a user can mend is one sentence."""

    def broken(*_, **__):
        raise bug

    monkeypatch.setattr(AuditReport, "__init__", broken)
    monkeypatch.chdir(place)
    with pytest.raises(type(bug)) as raised:
        main(["audit", "a", "--activations", "x.safetensors"])
    assert raised.value is bug
    assert not (place / "audit_report").exists()
