"""The tokens behind activations: kept beside them, and those that they come from."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from sae_lens import SAE
from transformers import AutoTokenizer

from sae_lens_isae.inputs.activation_files import save_activations
from sae_lens_isae.inputs.activations import open_activations
from sae_lens_isae.inputs.language_models import load_language_model
from sae_lens_isae.inputs.model_activations import from_model
from sae_lens_isae.inputs.token_text import TokenText, kept_places, token_text
from sae_lens_isae.training.caching import cache_activations
from sae_lens_isae.training.runs import train
from tests.conftest import D_IN
from tests.training.test_recovery import HOOK, runner_config
from tests.training.test_recovery import cache as cached


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """Folder of an SAE and of the activations that were kept beside it."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = runner_config(tiny_model, folder, training_tokens=64 * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(cfg, n_seeds=1, n_eval_batches=0, n_kept_activations=70)
    return folder / "out"


def sources(tiny_model, trained, tmp_path):
    """The same model's activations by every way that knows tokens."""
    model = str(tiny_model[0])
    yield open_activations(str(trained / "activations.safetensors"))
    yield from_model(SAE.load_from_disk(trained), 70, model_name=model, text=str(tiny_model[1]))
    cfg = runner_config(tiny_model, tmp_path, training_tokens=64)
    cache = cache_activations(cfg, tmp_path / "cache", None, 100)
    yield open_activations(str(cache.folder), 80)
    cached(tiny_model, tmp_path / "stock")
    yield open_activations(str(tmp_path / "stock"), 90, HOOK, model)


def test_they_are_those_that_the_activations_come_from(tiny_model, trained, tmp_path):
    model = load_language_model(str(tiny_model[0]), "AutoModelForCausalLM", "cpu", [HOOK])
    tokenizer = AutoTokenizer.from_pretrained(tiny_model[0])
    for n, source in zip((70, 70, 80, 90), sources(tiny_model, trained, tmp_path), strict=True):
        # one pass more: tokens are those of the last
        for _ in range(2):
            rows = torch.cat(list(source.batches(32)))
        text = source.origin()
        assert text is not None
        _, seen = model.run_with_cache(
            text.token_ids.long(), names_filter=[HOOK], prepend_bos=False
        )
        expected = seen[HOOK].reshape(-1, D_IN)[text.places.long()][:n]
        assert len(rows) == len(expected) == n
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
        excerpt = text.excerpt(n - 1)
        token_id = int(text.token_ids.reshape(-1)[text.places[n - 1]])
        assert excerpt.token == tokenizer.decode([token_id])


def test_without_tokens_there_are_none(tmp_path):
    save_activations(tmp_path / "x.safetensors", torch.randn(5, 3))
    assert open_activations(str(tmp_path / "x.safetensors")).origin() is None
    assert open_activations("synthetic:iid,num_features=8,hidden_dim=4,k=2").origin() is None
    assert token_text(None, torch.zeros(1, 1, dtype=torch.long), torch.zeros(1)) is None


def test_a_file_gives_back_what_was_written(tmp_path):
    text = TokenText(torch.tensor([[3, 1], [2, 3]]), torch.tensor([1, 2, 3]), {1: "é", 2: " b\n",
                     3: "<script>"})  # fmt: skip
    save_activations(tmp_path / "x.safetensors", torch.randn(3, 4), text)
    found = open_activations(str(tmp_path / "x.safetensors")).origin()
    assert found is not None
    assert [found.excerpt(row) for row in range(3)] == [
        ("<script>", "é", ""),
        ("", " b\n", "<script>"),
        (" b\n", "<script>", ""),
    ]
    assert found.first(1).places.tolist() == [1]


def test_the_space_that_sentence_piece_drops_is_there():
    tokenizer = SimpleNamespace(
        convert_ids_to_tokens=lambda ids: [{0: "\u2581a", 1: "b", 2: "\u2581"}[i] for i in ids],
        batch_decode=lambda rows: [{0: "a", 1: "b", 2: ""}[row[0]] for row in rows],
    )
    text = token_text(tokenizer, torch.tensor([[0, 1, 2, 0]]), torch.tensor([3]))
    assert text is not None
    assert text.excerpt(0) == (" ab ", " a", "")


def test_places_of_tokens_that_a_run_looks_at():
    tokens = torch.tensor([[0, 5, 6, 7], [0, 8, 0, 9]])
    places, kept = kept_places(tokens, slice(1, 4), torch.tensor([0]))
    assert tokens.reshape(-1)[places].tolist() == [5, 6, 7, 8, 9]
    # of the six activations at positions 1 to 3
    assert kept.tolist() == [0, 1, 2, 3, 5]
    places, kept = kept_places(tokens, slice(None), None)
    assert places.tolist() == kept.tolist() == list(range(8))
