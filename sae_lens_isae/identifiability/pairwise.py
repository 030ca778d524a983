"""Would another training run have found the same dictionary and the same codes?

Paper 1, section 4, 'Metrics': dictionary cosine similarity (DCS), intersection over union (IoU) of
the supports and l2 error of the codes, after matching the dictionaries up to permutation and sign.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE

from sae_lens_isae.identifiability.matching import DictionaryMatch, match_dictionaries
from sae_lens_isae.solvers.omp import omp

_BATCH = 1024
"""Samples encoded at once: dense codes of two SAEs with 65,536 latents take 0.5 GB."""


@dataclass(frozen=True)
class PairwiseIdentifiability:
    """How far two SAEs agree; 1, 1 and 0 for the same SAE up to permutation and sign."""

    dcs: float
    """Mean |cosine| of matched atoms."""
    iou: float
    """Mean over samples of |S & S'| / |S | S'| of the supports; 1 where both are empty."""
    l2: float
    """Mean over samples of |z - Pi z'|, over the mean code norm of both SAEs."""
    match: DictionaryMatch
    n_unmatched: int
    """Latents of the larger SAE without partner; where active they count as disagreement."""


@torch.no_grad()
def pairwise_identifiability(
    sae_a: SAE[Any],
    sae_b: SAE[Any],
    activations: Float[torch.Tensor, "samples d_in"],
    *,
    oracle_k: int | None = None,
) -> PairwiseIdentifiability:
    """Compare two SAEs on the same activations. Any two SAELens SAEs will do.

    Codes are compared as if every atom had unit norm. Each SAE encodes on its own device.

    Args:
        activations: Model activations at the SAEs' hook, not normalised.
        oracle_k: Replace both encoders by orthogonal matching pursuit with this many atoms on the
            learned dictionaries: the 'oracle' columns of the paper.

    Raises:
        ValueError: d_in differs, activations are empty, misshapen or not finite.
    """
    d_in = sae_a.cfg.d_in
    if sae_b.cfg.d_in != d_in:
        raise ValueError(f"the SAEs have different d_in: {d_in} and {sae_b.cfg.d_in}")
    if activations.ndim != 2 or activations.shape[1] != d_in or len(activations) == 0:
        raise ValueError(
            f"activations must be [samples >= 1, d_in = {d_in}], got {tuple(activations.shape)}"
        )
    if not activations.isfinite().all():
        raise ValueError("activations hold NaN or Inf")
    match = match_dictionaries(sae_a.W_dec, sae_b.W_dec)
    n_unmatched = abs(sae_a.cfg.d_sae - sae_b.cfg.d_sae)
    if n_unmatched:
        warnings.warn(
            f"dictionaries of {sae_a.cfg.d_sae} and {sae_b.cfg.d_sae} latents are matched on the "
            f"smaller one; {n_unmatched} latents of the larger have no partner",
            stacklevel=2,
        )

    iou_sum = distance_sum = norm_sum = 0.0
    for batch in activations.split(_BATCH):
        codes_a = _unit_norm_codes(sae_a, batch, oracle_k)
        codes_b = _unit_norm_codes(sae_b, batch, oracle_k)
        paired_a = codes_a[:, match.index_a]
        paired_b = codes_b[:, match.index_b] * match.sign
        active_a, active_b = codes_a != 0, codes_b != 0
        both = ((paired_a != 0) & (paired_b != 0)).sum(-1)
        either = active_a.sum(-1) + active_b.sum(-1) - both
        iou_sum += torch.where(either > 0, both / either.clamp_min(1), 1.0).sum().item()
        alone_a = codes_a.index_fill(1, match.index_a, 0)
        alone_b = codes_b.index_fill(1, match.index_b, 0)
        distance = (_energy(paired_a - paired_b) + _energy(alone_a) + _energy(alone_b)).sqrt()
        distance_sum += distance.sum().item()
        norm_sum += (codes_a.norm(dim=-1) + codes_b.norm(dim=-1)).sum().item() / 2
    return PairwiseIdentifiability(
        dcs=match.dcs,
        iou=iou_sum / len(activations),
        l2=distance_sum / norm_sum if norm_sum > 0 else 0.0,
        match=match,
        n_unmatched=n_unmatched,
    )


def _energy(codes: Float[torch.Tensor, "batch d_sae"]) -> Float[torch.Tensor, " batch"]:
    return codes.pow(2).sum(-1)


def _unit_norm_codes(
    sae: SAE[Any], activations: Float[torch.Tensor, "batch d_in"], oracle_k: int | None
) -> Float[torch.Tensor, "batch d_sae"]:
    """Dense codes in units of unit-norm atoms, on the CPU in float32."""
    x = activations.to(sae.device, sae.dtype)
    if oracle_k is not None:
        # SAELens subtracts the bias from the input only where the config says so
        centred = x - sae.b_dec * sae.cfg.apply_b_dec_to_input
        return omp(centred.float(), sae.W_dec.float(), oracle_k).to_dense().cpu()
    codes = sae.encode(x).float()
    if codes.is_sparse:
        codes = codes.to_dense()
    if not getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        codes = codes * sae.W_dec.float().norm(dim=-1)
    return codes.cpu()
