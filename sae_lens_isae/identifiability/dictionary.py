"""What a dictionary shows without codes, or with no more than how often each latent fires.

Coherence, the Lipschitz constant of Corollary 3, and health: all of 'Latent Recovery'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int

from sae_lens_isae.identifiability.latents import LatentCounts
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.progress import progress_bar

_DEAD_RATE = 1e-4
"""A latent with a lower usage rate is dead ('Latent Recovery', appendix D)."""
_BLOCK_NUMBERS = 2**26


@dataclass(frozen=True)
class Coherence:
    """The largest |cosine| of two atoms, and what it bounds."""

    mu: float
    latents: tuple[int, int]
    """The two latents."""
    rip_bound: float
    """(k - 1) mu, a bound on delta of any k atoms (Gershgorin), and on the relative error of the
    code of an ideal SAE ('Latent Recovery', Lemma 1). Vacuous from 1 on."""


@dataclass(frozen=True)
class Health:
    """Dictionary health as in 'Latent Recovery', appendix D."""

    dead_fraction: float
    """Share of latents active in less than one sample of 10,000."""
    usage_entropy: float
    """Entropy of the usage rates over that of uniform usage; 1 is best."""
    coherence_rms: float
    """Root mean square cosine of two different atoms."""
    n_zero_atoms: int


class NearestAtoms(NamedTuple):
    """For every latent the other one whose atom is most like its own, up to sign."""

    cosine: Float[torch.Tensor, " d_sae"]
    """|cosine| of the two."""
    latent: Int[torch.Tensor, " d_sae"]


def nearest_atoms(linear: LinearSAE) -> NearestAtoms:
    """The nearest other atom of every atom, in blocks."""
    atoms = linear.atoms
    cosine = torch.zeros(linear.d_sae)
    latent = torch.zeros(linear.d_sae, dtype=torch.long)
    blocks = torch.arange(linear.d_sae).split(max(1, _BLOCK_NUMBERS // linear.d_sae))
    for rows in progress_bar(
        blocks, desc="Coherence", unit="block", leave=False, disable=len(blocks) < 8
    ):
        found = (atoms[rows.to(atoms.device)] @ atoms.T).abs_()
        found[torch.arange(len(rows)), rows.to(found.device)] = -1.0
        best = found.max(1)
        cosine[rows] = best.values.clamp(0, 1).float().cpu()
        latent[rows] = best.indices.cpu()
    return NearestAtoms(cosine, latent)


def measure_coherence(nearest: NearestAtoms, k: int) -> Coherence:
    """The largest |cosine| of two atoms; `k` enters the bound only."""
    first = int(nearest.cosine.argmax())
    mu = float(nearest.cosine[first])
    second = int(nearest.latent[first])
    return Coherence(mu, (min(first, second), max(first, second)), (k - 1) * mu)


def lipschitz_constant(linear: LinearSAE) -> float | None:
    """|W_enc W_dec|_2 of Corollary 3, from two d_in x d_in matrices instead of the d_sae x d_sae
    product; None where the encoder is not one linear map and an activation function."""
    encoder = linear.encoder_weights()
    if encoder is None:
        return None
    values, vectors = torch.linalg.eigh(linear.frame_operator)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return math.sqrt(
        max(0.0, float(torch.linalg.eigvalsh(root @ (encoder @ encoder.T).double() @ root)[-1]))
    )


def measure_health(linear: LinearSAE, counts: LatentCounts) -> Health:
    """Dictionary health, with usage as counted over a stream of activations."""
    usage = counts.active / counts.n_samples
    p = usage / usage.sum()
    entropy = float(-(p * (p + 1e-12).log()).sum()) / math.log(max(2, linear.d_sae))
    own = linear.atoms.square().sum(-1).double().square().sum()
    return Health(
        dead_fraction=float((usage < _DEAD_RATE).double().mean()),
        usage_entropy=entropy,
        coherence_rms=math.sqrt(max(0.0, float(linear.frame_operator.square().sum() - own)))
        / linear.d_sae,
        n_zero_atoms=int((linear.atom_norm == 0).sum()),
    )
