"""Training an SAE further with its atoms held fixed."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

import torch
from jaxtyping import Float
from sae_lens import SAE, SAETrainer, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.registry import get_sae_training_class

from sae_lens_isae.architectures.isae import ISAETrainingSAE
from sae_lens_isae.checks import check_lr
from sae_lens_isae.errors import InputError
from sae_lens_isae.training.cached import ShuffledActivations

_TRAINED_AS: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("isae", {"activation": "topk"}),
    "abstopk": ("isae", {"activation": "abstopk"}),
    "topk_ls": ("isae_ls", {"activation": "topk"}),
    "abstopk_ls": ("isae_ls", {"activation": "abstopk"}),
    "isae_me": ("isae_me", {}),
}
"""The training class of every architecture that can be refined, and its settings."""


def check_refinement(n_steps: int, batch_size: int, lr: float) -> None:
    """Refuse settings of `refine` that are out of range.

    Raises:
        InputError: One is.
    """
    for name, value in (("steps", n_steps), ("batch", batch_size)):
        if value < 1:
            raise InputError(f"{name} must be >= 1, got {value}")
    check_lr(lr)


def refine(
    sae: SAE[Any],
    activations: Float[torch.Tensor, "activations d_in"],
    *,
    n_steps: int = 2000,
    batch_size: int = 2048,
    lr: float = 1e-3,
    seed: int = 0,
) -> TrainingSAE[Any]:
    """Train encoder and bias of an SAE on activations while its atoms stay.

    Adam under the recipe of `isae`, with a learning rate that falls to 0 over all steps.

    Args:
        sae: A TopK or AbsTopK SAE, with solved coefficients or without, or iSAE-ME with the tied
            step matrix. It is not changed.
        activations: At the SAE's hook, not normalised. They are seen in random order.

    Raises:
        InputError: The architecture cannot be trained here, or a setting is out of range.
    """
    architecture = sae.cfg.architecture()
    if architecture not in _TRAINED_AS:
        raise InputError(
            f"an SAE of architecture {architecture!r} cannot be refined, only "
            f"{', '.join(_TRAINED_AS)}; leave the steps out (--steps 0)"
        )
    check_refinement(n_steps, batch_size, lr)
    name, settings = _TRAINED_AS[architecture]
    training_class, config_class = get_sae_training_class(name)
    known = {field.name for field in fields(config_class)} - {"metadata"}
    kept: dict[str, Any] = {k: v for k, v in sae.cfg.to_dict().items() if k in known}
    # the atoms are fixed, so that aRIP would have nothing to act on
    kept |= {**settings, "arip_weight": 0.0}
    cfg = config_class(**kept)
    cfg.metadata = sae.cfg.metadata
    training = cast(ISAETrainingSAE, training_class(cfg))
    weights = sae.state_dict()
    training.process_state_dict_for_loading(weights)
    training.load_state_dict(weights)
    training.to(sae.device)
    if not training.cfg.rescale_acts_by_decoder_norm:
        training.set_unit_norm_atoms()
    training.W_dec.requires_grad_(False)
    data = ShuffledActivations(activations.to(sae.device), {"": seed}, batch_size, {})
    settings_of_trainer = SAETrainerConfig(
        total_training_samples=n_steps * batch_size,
        train_batch_size_samples=batch_size,
        lr=lr,
        lr_end=0.0,
        lr_decay_steps=n_steps,
        device=str(sae.device),
    )
    SAETrainer(settings_of_trainer, training, (batch[""] for batch in data)).fit()
    return training.eval()
