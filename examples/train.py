"""Train an iSAE through a SAELens runner and export it: `python train.py [folder]`."""

import sys

from sae_lens import LoggingConfig
from sae_lens.synthetic import SyntheticSAERunner, SyntheticSAERunnerConfig

from sae_lens_isae import ISAETrainingSAEConfig
from sae_lens_isae.synthetic import signed_synthetic_model

data = signed_synthetic_model(num_features=64, hidden_dim=32, k=3)
cfg = SyntheticSAERunnerConfig(
    synthetic_model=data.cfg,
    sae=ISAETrainingSAEConfig(d_in=32, d_sae=64, k=3),
    training_samples=500 * 256,
    batch_size=256,
    lr=1e-3,
    checkpoint_path=None,
    output_path=sys.argv[1] if len(sys.argv) > 1 else "output/example",
    run_final_eval=False,
    logger=LoggingConfig(log_to_wandb=False),
)
SyntheticSAERunner(cfg, override_synthetic_model=data).run()
print("exported to", cfg.output_path)
