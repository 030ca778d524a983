"""One identity for SAEs, models and texts: equal just where results are."""

from __future__ import annotations

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file

from sae_lens_isae import recode
from sae_lens_isae.files import file_stem
from sae_lens_isae.inputs.identity import model_identity, sae_identity, text_identity
from sae_lens_isae.recoding import RecodeSettings
from tests.conftest import D_IN, isae_config, make_sae


def exported(tmp_path, name="sae", **metadata):
    sae = make_sae(isae_config("AbsTopK"))
    sae.save_inference_model(tmp_path / name)
    path = tmp_path / name / "cfg.json"
    cfg = json.loads(path.read_text())
    cfg["metadata"] |= metadata
    path.write_text(json.dumps(cfg))
    return SAE.load_from_disk(tmp_path / name)


def test_what_makes_another_sae(tmp_path):
    base = exported(tmp_path, model_name="m", hook_name="h")
    assert sae_identity(base) == sae_identity(copy.deepcopy(base))
    # where it lies and with which version it was written is no part of it
    again = exported(tmp_path, "elsewhere", model_name="m", hook_name="h", sae_lens_version="6.9.9")
    assert sae_identity(again) == sae_identity(base)
    for change in (
        lambda sae: setattr(sae.cfg, "k", 7),
        lambda sae: setattr(sae.cfg, "normalize_activations", "layer_norm"),
        lambda sae: setattr(sae.cfg.metadata, "hook_name", "h2"),
        lambda sae: setattr(sae.cfg.metadata, "model_name", "m2"),
        lambda sae: setattr(sae.cfg.metadata, "prepend_bos", False),
        lambda sae: setattr(sae.cfg.metadata, "context_size", 9),
        lambda sae: setattr(sae.cfg.metadata, "model_from_pretrained_kwargs", {"revision": "r"}),
        lambda sae: sae.b_dec.data.add_(1e-7),
    ):
        other = copy.deepcopy(base)
        change(other)
        assert sae_identity(other) != sae_identity(base)
    other = copy.deepcopy(base)
    other.cfg.k = float(base.cfg.k)
    assert sae_identity(other) == sae_identity(base)


def test_what_makes_another_model(tiny_model, tmp_path):
    folder, _ = tiny_model
    base = model_identity(str(folder), "AutoModelForCausalLM", None)
    assert model_identity(str(folder), "AutoModelForCausalLM", {}) == base
    assert model_identity(str(folder), None, None) != base
    assert model_identity(str(folder), "AutoModelForCausalLM", {"dtype": "bfloat16"}) != base
    shutil.copytree(folder, tmp_path / "copy")
    assert model_identity(str(tmp_path / "copy"), "AutoModelForCausalLM", None) == base
    config = tmp_path / "copy" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-02'))
    assert model_identity(str(tmp_path / "copy"), "AutoModelForCausalLM", None) != base
    assert model_identity("gpt2", None, None) != model_identity("gpt2", None, {"revision": "r"})


def test_gguf_files_are_known_by_what_they_hold(tmp_path):
    names = []
    for folder, content in (("a", b"GGUF one"), ("b", b"GGUF two"), ("c", b"GGUF one")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.gguf").write_bytes(content)
        names.append(f"gguf:{tmp_path / folder / 'model.gguf'}")
    first, second, third = (model_identity(name, None, None) for name in names)
    assert first == third != second


def test_what_makes_another_text(tiny_model, tmp_path):
    _, folder = tiny_model
    base = text_identity(str(folder))
    shutil.copytree(folder, tmp_path / "copy")
    assert text_identity(str(tmp_path / "copy")) != base
    (tmp_path / "copy" / "train.jsonl").write_text('{"text": "other"}')
    changed = text_identity(str(tmp_path / "copy"))
    (tmp_path / "copy" / "train.jsonl").write_text('{"text": "third"}')
    assert text_identity(str(tmp_path / "copy")) != changed


@pytest.mark.slow
def test_parts_of_a_study_belong_to_one_sae(tmp_path):
    """k = 3 and k = 6 of one dictionary have their own codes by OMP."""
    sae, x = make_sae(isae_config("AbsTopK")).eval(), torch.randn(40, D_IN)
    wider = copy.deepcopy(sae)
    wider.activation_fn.k = wider.cfg.k = 6
    quick = RecodeSettings(gd_samples=2, gd_starts=1, noise_samples=4, decoder_k=(2,))
    studies = []
    for each, cache in ((sae, tmp_path), (wider, tmp_path), (wider, None)):
        with pytest.warns(UserWarning, match="are left out"):
            studies += recode({"a": each}, x, quick, cache=cache).saes
    first, second, alone = studies
    assert (first.mean_k, second.mean_k) == (3, 6)
    assert second.seconds.keys() >= {"OMP", "agreement"}
    assert second.agreement.equals(alone.agreement)
    assert not second.agreement["jaccard"].equals(first.agreement["jaccard"])


@pytest.mark.parametrize(
    "name", ["a/b", "../x", "..", ".", "/etc/passwd", "ä", "a b", "x" * 300, "", "-x", "a\nb"]
)
def test_file_names_stay_in_their_folder(name, tmp_path):
    stem = file_stem(name)
    assert (tmp_path / stem).parent == tmp_path
    assert (tmp_path / stem).resolve().parent == tmp_path.resolve()
    assert len(stem) < 120
    assert stem != file_stem(name + "_")
    (tmp_path / stem).write_text("")


def test_names_that_look_alike_are_two_files():
    assert file_stem("a_b") == "a_b"
    assert len({file_stem(n) for n in ("a_b", "a/b", "a b", "a:b", "a//b", "./a_b")}) == 6


def test_a_file_that_several_write_at_once_is_whole(tmp_path):
    from sae_lens_isae.files import write_json

    path = tmp_path / "x.json"

    def write(number):
        for _ in range(50):
            write_json(path, [number] * 2000)
            assert len(set(json.loads(path.read_text()))) == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_weights_are_read_as_they_are(tmp_path):
    sae = exported(tmp_path)
    assert set(load_file(tmp_path / "sae" / "sae_weights.safetensors")) == set(sae.state_dict())
