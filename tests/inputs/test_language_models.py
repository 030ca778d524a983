"""Models as the evals run them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformer_lens.utils import lm_cross_entropy_loss

from sae_lens_isae.inputs import gguf
from sae_lens_isae.inputs.gguf import convert_gguf, find_gguf
from sae_lens_isae.inputs.language_models import check_hook, in_bfloat16, load_language_model

HOOK = "model.layers.0"


def test_autocast_gives_float32_and_a_loss_of_its_logits(tiny_model):
    def load():
        return load_language_model(str(tiny_model[0]), "AutoModelForCausalLM", hook_names=[HOOK])

    tokens = torch.randint(3, 60, (4, 20), generator=torch.Generator().manual_seed(0))
    exact, cast = load(), in_bfloat16(load())
    with torch.no_grad():
        logits, loss = cast(tokens, return_type="both", loss_per_token=True)
        expected = exact(tokens, return_type="logits")
    assert logits.dtype == loss.dtype == torch.float32
    # in bfloat16 all the same
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, atol=0.02, rtol=0.05)
    # a loss that was itself rounded to bfloat16 would be off by 1%
    torch.testing.assert_close(loss, lm_cross_entropy_loss(logits, tokens, per_token=True))
    assert cast(tokens).dtype == torch.float32
    _, cache = cast.run_with_cache(tokens, names_filter=[HOOK], stop_at_layer=1)
    assert cache[HOOK].shape == (4, 20, 16)


def test_a_hook_that_is_not_there(tiny_model):
    model = load_language_model(str(tiny_model[0]), "AutoModelForCausalLM")
    check_hook(model, HOOK)
    with pytest.raises(ValueError, match=r"no hook 'model.layer.0'.*model\.layers\.0"):
        check_hook(model, "model.layer.0")


class Converted:
    """A model or tokenizer that takes a moment to be written."""

    def __init__(self, name):
        self.name = name
        self.config = type("Config", (), {})()

    def save_pretrained(self, folder):
        folder.mkdir(exist_ok=True)
        time.sleep(0.05)
        (folder / f"{self.name}.bin").write_text(self.name)
        if self.name == "model":
            (folder / "config.json").write_text("{}")


@pytest.fixture
def conversions(monkeypatch, tmp_path):
    """Conversions without a model: each names the file that it was made of."""
    monkeypatch.setenv("SAE_LENS_ISAE_CACHE", str(tmp_path / "cache"))
    made = []

    def convert(kind):
        def from_pretrained(folder, gguf_file, **_):
            made.append(folder)
            return Converted(kind)

        return type(kind, (), {"from_pretrained": staticmethod(from_pretrained)})

    monkeypatch.setattr(gguf, "AutoTokenizer", convert("tokenizer"))
    monkeypatch.setattr(gguf, "AutoModelForCausalLM", convert("model"))
    monkeypatch.setattr(gguf, "find_spec", lambda name: name)
    return made


def gguf_file(folder, content):
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"GGUF" + content)
    return str(folder / "model.gguf")


def test_another_file_of_the_same_name_is_another_model(conversions, tmp_path):
    first, second = (gguf_file(tmp_path / name, name.encode()) for name in ("a", "b"))
    folders = [convert_gguf(name) for name in (first, second, first)]
    assert folders[0] == folders[2] != folders[1]
    assert len(conversions) == 4
    (tmp_path / "b" / "model.gguf").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model.gguf is not a GGUF file \(0 bytes\)"):
        convert_gguf(second)


def test_a_file_that_two_convert_at_once(conversions, tmp_path):
    name = gguf_file(tmp_path / "a", b"x")
    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(convert_gguf, [name] * 4))
    assert {p.name for p in folder.iterdir()} == {"model.bin", "tokenizer.bin", "config.json"}
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_package_in_several_parts_is_not_read(monkeypatch, tmp_path):
    for part in (1, 2):
        (tmp_path / f"model-0000{part}-of-00002.gguf").write_bytes(b"GGUF")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(gguf, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match=r"ships 2 GGUF files.*gguf:.*00001-of-00002.gguf"):
        find_gguf("parts")
