"""SAEs by name."""

from __future__ import annotations

import pytest
import torch
from sae_lens import SAE

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.saes import labels, load_sae, named_saes
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


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["out/a/seed_0", "out/a/seed_1"], ["seed_0", "seed_1"]),
        (["out/a/seed_0", "out/b/seed_0"], ["a/seed_0", "b/seed_0"]),
        (["out/a", "out/a", "out/a"], ["a", "a (2)", "a (3)"]),
        (["gpt2-small-res-jb/blocks.0", "mine"], ["gpt2-small-res-jb/blocks.0", "mine"]),
        (["/x/a", "b"], ["/x/a", "b"]),
        (["out/a"], ["out/a"]),
    ],
)
def test_labels(names, expected):
    assert labels(names) == expected


def test_saes_are_given_as_one_likes(tmp_path):
    """Loaded or by name, one or several, in a list or a mapping."""
    sae = make_sae(isae_config("iSAE"))
    folder = tmp_path / "x" / "seed_0"
    sae.save_inference_model(folder)
    assert list(named_saes(sae)) == ["SAE"]
    assert list(named_saes(folder)) == list(named_saes(str(folder))) == ["x/seed_0"]
    assert list(named_saes([sae, sae])) == ["0", "1"]
    found = named_saes({"loaded": sae, "named": folder})
    assert found["loaded"] is sae
    torch.testing.assert_close(found["named"].W_dec, sae.W_dec)


@pytest.mark.parametrize("wrong", [3, None, {"a": 3}, [torch.zeros(2)], {"a"}])
def test_something_else_is_refused_before_anything_is_loaded(wrong):
    with pytest.raises(InputError, match=r"expected, got|saes must be"):
        named_saes(wrong)
