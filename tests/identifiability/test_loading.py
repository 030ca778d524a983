"""SAEs by name."""

from __future__ import annotations

import pytest
import torch
from sae_lens import SAE

from sae_lens_isae.inputs.saes import load_sae
from tests.conftest import isae_config, make_sae


def test_saes_by_folder_and_bad_names(tmp_path, monkeypatch):
    sae = make_sae(isae_config("iSAE"))
    sae.save_inference_model(tmp_path / "sae")
    torch.testing.assert_close(load_sae(str(tmp_path / "sae")).W_dec, sae.W_dec)
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "none"), "nothing", "./none/x", "sae/seed_0/x", "somebody/repo"):
        with pytest.raises(FileNotFoundError, match="neither a folder"):
            load_sae(name)
    with pytest.raises(ValueError, match=r"not found in release"):
        load_sae("gpt2-small-res-jb/no-such-id")


@pytest.mark.parametrize(
    ("name", "release", "sae_id"),
    [
        (
            "gpt2-small-res-jb/blocks.0.hook_resid_pre",
            "gpt2-small-res-jb",
            "blocks.0.hook_resid_pre",
        ),
        ("somebody/some-saes/layer_9/seed_0", "somebody/some-saes", "layer_9/seed_0"),
    ],
)
def test_pretrained_names_go_to_sae_lens(name, release, sae_id, monkeypatch):
    seen = []
    monkeypatch.setattr(SAE, "from_pretrained", lambda *args, **_: seen.append(args))
    load_sae(name)
    assert seen == [(release, sae_id)]
