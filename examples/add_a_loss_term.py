"""Add the aRIP regulariser to SAELens' own `topk` by config alone; the export stays stock."""

import tempfile

import torch
from sae_lens import SAE, SAETrainer, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.synthetic import SyntheticActivationIterator

from sae_lens_isae import RegularizedTopKTrainingSAEConfig
from sae_lens_isae.synthetic import signed_synthetic_model

data = signed_synthetic_model(num_features=64, hidden_dim=32, k=3)
for weight in (0.0, 1.0):
    torch.manual_seed(0)
    cfg = RegularizedTopKTrainingSAEConfig(d_in=32, d_sae=64, k=3, arip_weight=weight)
    sae = TrainingSAE.from_dict(cfg.to_dict())
    batches = SyntheticActivationIterator(data.feature_dict, data.activation_generator, 256)
    schedule = SAETrainerConfig(
        total_training_samples=500 * 256, train_batch_size_samples=256, lr=1e-3, lr_end=1e-4
    )
    SAETrainer(schedule, sae, batches).fit()
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        exported = SAE.load_from_disk(folder)
    cosine = exported.W_dec @ exported.W_dec.T - torch.eye(64)
    print(f"arip_weight {weight}: {type(exported).__name__}, mean cos^2 {cosine.pow(2).mean():.4f}")
