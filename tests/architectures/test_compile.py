"""`compile_sae=True` compiles `training_forward_pass`."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import VARIANTS, Activations, isae_config, make_sae, make_trainer


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_training_equals_eager_and_does_not_compile_every_step_anew(variant):
    torch.compiler.reset()
    settings = {
        "resample_until": 15,
        "resample_every": 2,
        "wsae_alpha": 0.5,
        "self_consistency_weight": 0.5,
        "self_consistency_warm_up_start": 3,
        "self_consistency_warm_up_end": 6,
    }
    if variant.startswith("iSAE-LS"):
        settings["self_consistency_weight"] = 0.0
        settings["solve_after_steps"] = 2
    if variant.startswith("iSAE-ME"):
        settings["encoder_warm_up_steps"] = 2
    saes = [make_sae(isae_config(variant, **settings)) for _ in range(2)]
    saes[1].training_forward_pass = torch.compile(saes[1].training_forward_pass, backend="eager")
    trainers = [make_trainer(sae, Activations(0.5), 20, dead_feature_window=3) for sae in saes]

    def train(n_steps):
        for _ in range(n_steps):
            for trainer in trainers:
                trainer.step(next(trainer.data_provider))
                trainer.n_training_steps += 1

    # the warm-up ends in step 2 and latents are first dead in step 5
    train(8)
    with torch.compiler.set_stance("fail_on_recompile"):
        train(12)
    for name, value in saes[0].state_dict().items():
        torch.testing.assert_close(saes[1].state_dict()[name], value)
