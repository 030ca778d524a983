"""SAEs for different activations are not compared in silence."""

from __future__ import annotations

import json

import pytest
import torch

from sae_lens_isae import pairwise_identifiability
from sae_lens_isae.identifiability.audit import audit
from tests.conftest import D_IN, complaint, isae_config, make_sae, run_isae


def two(**second):
    saes = {}
    for seed, name in enumerate("ab"):
        sae = make_sae(isae_config("AbsTopK"), seed)
        metadata = {"model_name": "m", "hook_name": "blocks.5.hook_resid_post"}
        sae.cfg.metadata.__dict__.update({**metadata, **(second if name == "b" else {})})
        saes[name] = sae.eval()
    return saes


@pytest.mark.parametrize(
    "second", [{"hook_name": "blocks.12.hook_resid_post"}, {"model_name": "n"},
               {"hook_head_index": 3}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("measure", [pairwise_identifiability, audit])
def test_refused_unless_forced(second, measure):
    saes, x = two(**second), torch.randn(40, D_IN)
    (field,) = second
    if field == "hook_head_index":
        saes["a"].cfg.metadata.hook_head_index = 1
    with pytest.raises(ValueError, match=f"differ in {field}.*--force"):
        measure(saes, x)
    found = measure(saes, x, force=True)
    report = found if measure is pairwise_identifiability else found[0]
    assert field in report.differences[0]


def test_what_is_unknown_or_does_not_decide_is_no_reason_to_refuse():
    saes, x = two(hook_name=None, context_size=64), torch.randn(40, D_IN)
    saes["a"].cfg.metadata.context_size = 128
    report = pairwise_identifiability(saes, x)
    assert "context_size: 128 (a), 64 (b)" in report.notes()[0]


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    for name, sae in two(hook_name="blocks.12.hook_resid_post").items():
        sae.save_inference_model(tmp_path / name)
    data = f"synthetic:iid,num_features=30,hidden_dim={D_IN},k=2"
    for command in ("pairwise", "audit"):
        arguments = (command, "a", "b", "--activations", data, "--samples", 60)
        said = complaint(arguments, tmp_path, monkeypatch, capsys)
        assert "blocks.12" in said
        assert "--force" in said
    arguments = ("--activations", data, "--samples", 60, "--force", "--out", tmp_path / "out")
    run_isae("audit", tmp_path / "a", tmp_path / "b", *arguments)
    assert "differ in hook_name" in (tmp_path / "out" / "audit.html").read_text()
    audited = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert "blocks.12" in audited["saes"][0]["differences"][0]
