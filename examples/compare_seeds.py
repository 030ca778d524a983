"""Would another seed have found the same features? Train iSAE-ME twice and compare."""

import torch
from sae_lens import SAETrainer
from sae_lens.config import SAETrainerConfig
from sae_lens.synthetic import SyntheticActivationIterator

from sae_lens_isae import (
    ISAEMETrainingSAE,
    ISAEMETrainingSAEConfig,
    pairwise_identifiability,
)
from sae_lens_isae.synthetic import signed_synthetic_model

N_STEPS, BATCH = 2500, 256

data = signed_synthetic_model(num_features=64, hidden_dim=32, k=3)
saes = []
for seed in (0, 1):
    torch.manual_seed(seed)
    sae = ISAEMETrainingSAE(
        ISAEMETrainingSAEConfig(
            d_in=32,
            d_sae=64,
            k=3,
            arip_seed=seed,
            resample_until=2250,  # beyond the paper: dead latents go where most is left over
        )
    )
    batches = SyntheticActivationIterator(data.feature_dict, data.activation_generator, BATCH)
    schedule = SAETrainerConfig(
        total_training_samples=N_STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=2e-3,
        lr_end=2e-4,
        lr_decay_steps=500,
        dead_feature_window=10,
    )
    saes.append(SAETrainer(schedule, sae, batches).fit())

report = pairwise_identifiability({"first": saes[0], "second": saes[1]}, data.sample(1024))
found = report.pairs[0]
iou = found.sae.iou
print(f"DCS {found.dcs:.3f} (1: same atoms)")
print(f"IoU {iou.value:.3f} [{iou.low:.3f}, {iou.high:.3f}] (1: same active latents)")
print(f"l2 {found.sae.l2.value:.3f} (0: same codes)")
latents = report.latents.query("sae == 'first'").sort_values("mean_cosine")
print("latents of the first SAE to trust least:")
print(latents[["latent", "firing_rate", "mean_cosine", "mean_code_iou"]].head(3))
