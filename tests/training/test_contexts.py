"""Contexts made in whole batches are those of SAELens."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from sae_lens import ActivationsStore
from sae_lens.tokenization_and_batching import concat_and_batch_sequences

from sae_lens_isae.inputs.language_models import load_language_model
from sae_lens_isae.training.contexts import Contexts, concatenated_contexts
from sae_lens_isae.training.llm_batches import LLMBatches
from tests.conftest import D_IN

TEXTS = st.lists(st.lists(st.lists(st.integers(0, 3), max_size=9), max_size=5), max_size=5)


@given(
    batches=TEXTS,
    size=st.integers(2, 7),
    begin=st.sampled_from([None, 0, 1]),
    separator=st.sampled_from([None, 0, 2]),
)
def test_any_texts_give_the_contexts_of_sae_lens(batches, size, begin, separator):
    texts = [torch.tensor(text, dtype=torch.long) for batch in batches for text in batch]
    expected = list(concat_and_batch_sequences(iter(texts), size, begin, None, separator))
    arrays = [[np.array(text, dtype=np.int64) for text in batch] for batch in batches]
    found = list(concatenated_contexts(arrays, size, begin, separator))
    assert [row.tolist() for chunk in found for row in chunk] == [row.tolist() for row in expected]


def store(tiny_model, dataset=None, model_class="AutoModelForCausalLM", **settings):
    folder, text = tiny_model
    hook = "model.layers.0" if model_class == "AutoModelForCausalLM" else "blocks.0.hook_out"
    model = load_language_model(str(folder), model_class, "cpu", [hook])
    defaults = {
        "streaming": False,
        "hook_name": hook,
        "hook_head_index": None,
        "context_size": 16,
        "d_in": D_IN,
        "n_batches_in_buffer": 8,
        "total_training_tokens": 100,
        "store_batch_size_prompts": 3,
        "train_batch_size_tokens": 16,
        "prepend_bos": True,
        "normalize_activations": "none",
        "device": torch.device("cpu"),
        "dtype": "float32",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ActivationsStore(
            model, str(text) if dataset is None else dataset, **{**defaults, **settings}
        )


TOKENS = Dataset.from_dict({"tokens": [[i % 7] * 20 for i in range(50)]})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model_class": "TransformerBridge"},
        {"prepend_bos": False, "sequence_separator_token": None},
        {"sequence_separator_token": "eos"},
        {"disable_concat_sequences": True, "context_size": 5},
        {"dataset": TOKENS},
        {"streaming": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("stops", [True, False])
def test_contexts_come_as_from_the_store(tiny_model, settings, stops):
    """Over the end of the text, at which the store drops what it has of a batch, or reads on."""
    theirs, ours = store(tiny_model, **settings), store(tiny_model, **settings)
    contexts = Contexts(ours)
    n_ends = 0
    while n_ends < 3:
        expected = found = None
        try:
            expected = theirs.get_batch_tokens(3, raise_at_epoch_end=stops)
        except StopIteration:
            n_ends += 1
        try:
            found = ours.get_batch_tokens(3, raise_at_epoch_end=stops)
        except StopIteration:
            assert expected is None
        if expected is not None:
            assert found is not None
            assert torch.equal(found, expected)
        if not stops:
            n_ends = contexts.position()[0]
    contexts.close()


def test_a_position_is_found_again(tiny_model):
    first = Contexts(store(tiny_model))
    for _ in range(9):
        first.read(5)
    position, expected = first.position(), first.read(7)
    first.close()
    again = Contexts(store(tiny_model))
    again.seek(position)
    assert torch.equal(again.read(7), expected)
    again.close()


def test_shares_are_disjoint_and_make_up_the_text(tiny_model):
    """Texts of one context each, so that none is joined with another."""
    rows = [[number] * 16 for number in range(40)]
    seen = []
    for rank in range(2):
        contexts = Contexts(store(tiny_model, Dataset.from_dict({"tokens": rows})), (rank, 2))
        seen.append({int(row[0]) for row in contexts.read(20)})
        contexts.close()
    assert seen[0] | seen[1] == set(range(40))
    assert not seen[0] & seen[1]


@pytest.mark.parametrize(
    ("capability", "is_rounded"), [("AVX512", True), ("AVX2", False), ("DEFAULT", False)]
)
def test_bfloat16_is_left_out_where_it_is_slow(
    tiny_model, monkeypatch, caplog, capability, is_rounded
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    found = []
    for autocast in (False, True):
        mine = store(tiny_model, autocast_lm=autocast)
        contexts = Contexts(mine)
        found.append(next(LLMBatches(mine, contexts)))
        contexts.close()
    assert torch.equal(*found) != is_rounded
    assert ("autocast_lm is left out" in caplog.text) != is_rounded
    torch.testing.assert_close(*found, rtol=0.1, atol=0.1)
