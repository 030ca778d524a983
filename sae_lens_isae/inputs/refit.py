"""Any SAE with its coefficients set by least squares."""

from __future__ import annotations

from typing import Any

import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.registry import SAE_CLASS_REGISTRY

from sae_lens_isae.architectures.least_squares import SUFFIX, CandidatesConfig
from sae_lens_isae.errors import InputError


@torch.no_grad()
def refit(sae: SAE[Any], candidates: float = 1.0) -> SAE[Any]:
    """The same SAE with the coefficients that rebuild its input best on the supports it chooses.

    Nothing is trained: weights and supports stay, the error falls, and codes become what assumption
    A6 of Theorem 3.6 (Nelson et al. 2026) asks for. Coefficients of an AbsTopK SAE are free; others
    keep their sign: latents that come out with the other one are left out, and the rest is solved
    again. The result is an ordinary SAE of the architecture NAME_ls, to be saved and loaded by
    SAELens wherever this package is imported.

    Args:
        sae: Any SAE that SAELens loads and that rebuilds single activations. It is not changed; the
            result has weights of its own.
        candidates: Of TopK and AbsTopK: the `candidates` * k latents that are largest in the
            encoder's code are solved for, and the k with the largest coefficients stay. Above 1
            supports are no longer those of the encoder: the error falls further, and seeds agree
            less on them.

    Raises:
        InputError: It is a training SAE, a transcoder, or solved for already; or it has no `k` and
            `candidates` is not 1.

    Examples:
        >>> import torch
        >>> from sae_lens import TopKSAE, TopKSAEConfig
        >>> from sae_lens_isae import refit
        >>> _ = torch.manual_seed(0)
        >>> sae, x = TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=2)), torch.randn(100, 8)
        >>> solved = refit(sae)
        >>> solved.cfg.architecture()
        'topk_ls'
        >>> bool((solved(x) - x).norm() < (sae(x) - x).norm())
        True
    """
    architecture = sae.cfg.architecture()
    name = architecture + SUFFIX
    if isinstance(sae, TrainingSAE):
        raise InputError(
            "refit takes SAEs for inference; save this one with save_inference_model and load that"
        )
    if name not in SAE_CLASS_REGISTRY:
        solvable = sorted(n for n in SAE_CLASS_REGISTRY if n + SUFFIX in SAE_CLASS_REGISTRY)
        raise InputError(
            f"refit knows no form of {architecture!r} with solved coefficients; it takes "
            f"{', '.join(solvable)}"
        )
    sae_class, config_class = SAE_CLASS_REGISTRY[name]
    settings = {**sae.cfg.to_dict(), "architecture": name, "device": str(sae.device)}
    if issubclass(config_class, CandidatesConfig):
        settings["candidates"] = candidates
    elif candidates != 1:
        raise InputError(
            f"candidates must be 1 for {architecture!r}; TopK and AbsTopK can propose more latents"
        )
    solved = sae_class(config_class.from_dict(settings))
    solved.load_state_dict(sae.state_dict())
    return solved.eval()
