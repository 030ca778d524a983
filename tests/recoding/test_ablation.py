"""Prompts in a running model: against the same model called by hand."""

from __future__ import annotations

import pytest
import torch
from sae_lens.load_model import load_model

from sae_lens_isae.recoding import Prompt, PromptedModel, load_prompts
from sae_lens_isae.recoding.ablation import ablate
from sae_lens_isae.recoding.prompts import DEFAULT_PROMPTS
from sae_lens_isae.solvers import SparseCodes
from tests.conftest import D_IN
from tests.solvers.test_omp import unit_atoms

HOOK = "model.layers.0"


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model("AutoModelForCausalLM", str(tiny_model[0]), device="cpu", hook_names=[HOOK])


@pytest.fixture(scope="module")
def words(model):
    return [w for w in sorted(model.tokenizer.get_vocab()) if w.isalpha()]


@pytest.fixture
def prompted(model, words):
    prompts = [Prompt(" ".join(words[i : i + 2 + i % 3]), words[i + 7]) for i in range(12)]
    return PromptedModel.from_prompts(model, prompts)


def by_hand(model, tokens, new=None):
    """Logits and the layer's output at the last position."""
    seen = []

    def hook(_module, _inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        seen.append(hidden[0, -1].clone())
        if new is not None:
            hidden[0, -1] = new

    handle = model.model.model.layers[0].register_forward_hook(hook)
    with torch.no_grad():
        logits = model.model(tokens[None]).logits[0, -1]
    handle.remove()
    return logits, seen[0]


def test_tokens_and_answers(prompted, model, words):
    tokenizer = model.tokenizer
    assert prompted.tokens[0].tolist() == [1, *tokenizer.convert_tokens_to_ids(words[:2])]
    assert prompted.answers[0] == tokenizer.convert_tokens_to_ids(words[7])
    bare = PromptedModel.from_prompts(model, [Prompt(words[0], words[1])], prepend_bos=False)
    assert bare.tokens[0].tolist() == tokenizer.convert_tokens_to_ids(words[:1])


def test_activations_and_answers_are_the_models(prompted, model):
    found = prompted.activations(HOOK)
    for i, tokens in enumerate(prompted.tokens):
        logits, hidden = by_hand(model, tokens)
        torch.testing.assert_close(found[i], hidden)
        probability = logits.softmax(-1)[prompted.answers[i]]
        torch.testing.assert_close(prompted.unchanged().probability[i], probability)
        assert prompted.unchanged().token[i] == logits.argmax()


def test_ablation_subtracts_the_largest_features_at_the_last_position(prompted, model):
    atoms = unit_atoms(9, D_IN, 0).float()
    # answers that the model gives, so that there is something to break
    own = PromptedModel(model, prompted.tokens, prompted.unchanged().token)
    assert own.correct.all()
    x = own.activations(HOOK)
    dense = 2 * torch.randn(12, 9, generator=torch.Generator().manual_seed(0))
    table = ablate(own, HOOK, torch.arange(12), x, SparseCodes.from_dense(dense), atoms, (1, 3))
    assert table[["features", "n_prompts"]].values.tolist() == [[1, 12], [3, 12]]
    for row in table.to_dict(orient="records"):
        broken, drop = [], []
        for i in range(row["n_prompts"]):
            top = dense[i].abs().topk(row["features"]).indices
            new = x[i] - dense[i, top] @ atoms[top]
            logits, _ = by_hand(model, own.tokens[i], new)
            broken.append(float(logits.argmax() != own.answers[i]))
            before = own.unchanged().probability[i]
            drop.append((before - logits.softmax(-1)[own.answers[i]]).item())
        assert row["breaking_rate"] == pytest.approx(sum(broken) / len(broken))
        assert row["probability_drop"] == pytest.approx(sum(drop) / len(drop), abs=1e-6)
    assert table["breaking_rate"].max() > 0


def test_an_unchanged_activation_changes_nothing(prompted):
    x = prompted.activations(HOOK)
    again = prompted.replaced(HOOK, torch.tensor([3, 3, 0]), x[[3, 3, 0]])
    torch.testing.assert_close(again.probability, prompted.unchanged().probability[[3, 3, 0]])


def test_a_hook_that_the_model_lacks(prompted):
    with pytest.raises(ValueError, match=r"no hook 'model.layers.7'.*nearest are \['model"):
        prompted.activations("model.layers.7")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,answer\na,b\n", "no column prompt"),
        ("a,b\nc,d\n", "no column answer and no column prompt"),
        ("prompt,answer\nx,\n", "row 2: prompt or answer is empty"),
        ("prompt,answer\n", "holds no prompts"),
        ("", "no column"),
    ],
)
def test_bad_files_of_prompts(tmp_path, text, message):
    path = tmp_path / "prompts.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_prompts(path)
    with pytest.raises(FileNotFoundError, match="no file of prompts"):
        load_prompts(tmp_path / "none.csv")


def test_prompts_that_come_with_the_package():
    prompts = load_prompts(DEFAULT_PROMPTS)
    assert len({p.text for p in prompts}) == len(prompts) > 500


def test_what_is_taken_away_by_chance_is_as_long_as_the_own(prompted, model):
    atoms = unit_atoms(9, D_IN, 0).float()
    own = PromptedModel(model, prompted.tokens, prompted.unchanged().token)
    x = own.activations(HOOK)
    dense = 2 * torch.randn(12, 9, generator=torch.Generator().manual_seed(0))
    codes = SparseCodes.from_dense(dense)
    # ten times another sample's code points where that does, and is cut to the length of the own
    others = SparseCodes.from_dense(10 * dense.roll(1, 0))
    found = ablate(own, HOOK, torch.arange(12), x, others, atoms, (3,), as_long_as=codes)
    broken = []
    for i in range(12):
        taken = others.largest(3).decode(atoms)[i]
        length = codes.largest(3).decode(atoms)[i].norm()
        logits, _ = by_hand(model, own.tokens[i], x[i] - taken / taken.norm() * length)
        broken.append(int(logits.argmax() != own.answers[i]))
    assert found.breaking_rate.item() == pytest.approx(sum(broken) / 12)
