"""`compile_sae=True` compiles `training_forward_pass`."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import VARIANTS, Activations, isae_config, make_sae, make_trainer


@pytest.mark.parametrize("variant", VARIANTS)
def test_compiled_training_equals_eager_and_compiles_a_fixed_number_of_times(variant):
    torch.compiler.reset()
    n_compiled = 0

    def counting_backend(graph, _):
        nonlocal n_compiled
        n_compiled += 1
        return graph.forward

    settings = {"encoder_warm_up_steps": 2} if variant.startswith("iSAE-ME") else {}
    saes = [make_sae(isae_config(variant, **settings)) for _ in range(2)]
    saes[1].training_forward_pass = torch.compile(
        saes[1].training_forward_pass, backend=counting_backend
    )
    history = []
    trainers = [make_trainer(sae, Activations(0.5), 20, dead_feature_window=3) for sae in saes]
    for _ in range(20):
        for trainer in trainers:
            trainer.step(next(trainer.data_provider))
            trainer.n_training_steps += 1
        history.append(n_compiled)
    assert n_compiled > 0
    assert history[-1] == history[9]
    for name, value in saes[0].state_dict().items():
        torch.testing.assert_close(saes[1].state_dict()[name], value)
