"""A bench that is small in every respect: tiny model, few texts, few batches."""

from __future__ import annotations

import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sae_lens_isae.saebench.texts import TwoLabelTexts
from tests.conftest import isae_config, train_sae

needs_saebench = pytest.mark.skipif(
    find_spec("sae_bench") is None, reason="SAEBench not installed: run `make bench`"
)
HOOK = "model.layers.0"
ALL_EVALS = ["core", "sparse_probing", "scr", "tpp", "sae_probes", "ce_bench"]
STORIES = Path(__file__).parent.parent / "cebench" / "stories.json"


def save_sae(folder: Path, model: Path, variant: str = "AbsTopK", seed: int = 0) -> Path:
    """A trained SAE that says it belongs to the tiny model."""
    sae = train_sae(isae_config(variant), n_steps=5, seed=seed, offset=0.0)
    sae.cfg.metadata.model_name = str(model)
    sae.cfg.metadata.model_class_name = "AutoModelForCausalLM"
    sae.cfg.metadata.hook_name = HOOK
    sae.cfg.metadata.context_size = 16
    sae.cfg.metadata.prepend_bos = True
    sae.save_inference_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_model, tmp_path_factory):
    """With embeddings of a size that SAEBench's probes learn from."""
    folder = tmp_path_factory.mktemp("loud") / "model"
    shutil.copytree(tiny_model[0], folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(50)
    model.save_pretrained(folder)
    return folder, tiny_model[1]


def crossed_words(model: Path) -> TwoLabelTexts:
    """Texts in words that the tiny model knows; the first label shows in fewer of them than the
    second, so that a biased probe goes by the second."""
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(word for word in vocabulary if word.isalpha())
    rng = random.Random(0)
    marks = {"p": words[0], "q": words[1], "r": words[2], "s": words[3]}
    texts = {
        (a, b): [
            " ".join([*rng.choices(words[4:], k=6), marks[a], *[marks[b]] * 4]) for _ in range(120)
        ]
        for a in "pq"
        for b in "rs"
    }
    return TwoLabelTexts("words_as_bias_in_bios", ("p", "q"), ("r", "s"), texts)


@pytest.fixture
def few_texts(tiny_model, monkeypatch):
    """One or two data sets for each eval."""
    data = "sae_lens_isae.saebench.data"
    monkeypatch.setattr(f"{data}.PROBING_SETS", ("96_spam_is",))
    monkeypatch.setattr(f"{data}.TPP_SETS", ("99_sci_cat",))
    monkeypatch.setattr(f"{data}.SAE_PROBES_SETS", ("95_toxic_is",))
    monkeypatch.setattr(f"{data}.two_label_sets", lambda: [crossed_words(tiny_model[0])])


@pytest.fixture
def two_saes(tiny_model, tmp_path):
    """A signed SAE and one without signs, in folders."""
    model = tiny_model[0]
    return [
        str(save_sae(tmp_path / "abstopk" / "seed_0", model)),
        str(save_sae(tmp_path / "topk" / "seed_0", model, "TopK")),
    ]
