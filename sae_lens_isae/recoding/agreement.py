"""How far two codes of the same samples on one dictionary agree: 'Which Sparse Code?', appendices B
and D."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float

from sae_lens_isae.errors import InputError
from sae_lens_isae.solvers import SparseCodes

_NEGLIGIBLE = 1e-10
"""Share of the largest eigenvalue below which a principal component is rounding."""
MAX_CHANCE = 0.5
"""R2 and CCA are left out where unrelated codes would have a larger R2 than this."""


@dataclass(frozen=True)
class EncoderAgreement:
    """A code against the encoder's."""

    n_samples: int
    reconstruction: float | None
    """Squared error over the encoder's; None where the encoder has none."""
    jaccard: float
    """Mean overlap of the supports, |S & S'| / |S | S'|."""
    cosine: float
    r2: float | None
    """R2 of a linear map from one code's principal components to the other's, mean over components
    (scikit-learn's default) and both directions; None where a code does not vary, or where samples
    are too few for the components (`MAX_CHANCE`)."""
    r2_weighted: float | None
    """The same with components weighted by their variance: the share of it that is explained."""
    cca: float | None
    """Mean canonical correlation of the principal components."""
    procrustes: float | None
    """min over rotations R of |Z - Z' R| / |Z'|, Z the encoder's codes; None for zero codes."""
    disparity: float | None
    """The same of centred codes of equal size, squared: 0 to 1 (scipy.spatial.procrustes)."""
    shared_correlation: float | None
    """Pearson correlation of the coefficients of latents that both use."""
    retained: float | None
    """Share of the variance in the principal components, the smaller of the two."""
    chance_r2: float | None
    """What r2 would be for unrelated codes with as many samples and components."""
    chance_jaccard: float | None
    """Jaccard with the code of another sample, drawn at random, as of all that follow; None where
    there is one sample."""
    chance_cosine: float | None
    chance_cca: float | None
    chance_procrustes: float | None


@torch.no_grad()
def compare_with_encoder(
    encoder: SparseCodes,
    other: SparseCodes,
    target: Float[torch.Tensor, "samples d_in"],
    atoms: Float[torch.Tensor, "d_sae d_in"],
    n_components: int = 50,
) -> EncoderAgreement:
    """Compare a code with the encoder's.

    Args:
        target: What both are to rebuild, the decoder's bias subtracted.
        atoms: With unit norm; codes refer to them.
        n_components: Of the codes, for R2 and CCA; fewer where the samples do not span as many.

    Raises:
        InputError: There are no samples, or not the same number of codes.
    """
    if not len(target) == len(encoder.indices) == len(other.indices) > 0:
        raise InputError(
            f"{len(target)} samples have {len(encoder.indices)} and {len(other.indices)} codes"
        )
    a, b = _dense_on_active(encoder, other)
    errors = [(target - codes.decode(atoms)).square().sum().item() for codes in (encoder, other)]
    pc_a, pc_b = _components(a, n_components), _components(b, n_components)
    linear = None if pc_a is None or pc_b is None else _linear_fit(pc_a, pc_b)
    shared = (a != 0) & (b != 0)
    procrustes, disparity = _procrustes(a, b)
    chance = _by_chance(encoder, other, a, b, pc_a, pc_b)
    if linear is not None and linear.chance > MAX_CHANCE:
        linear = linear._replace(r2=None, r2_weighted=None, cca=None)
    return EncoderAgreement(
        n_samples=len(target),
        reconstruction=errors[1] / errors[0] if errors[0] else None,
        jaccard=jaccard(encoder, other).mean().item(),
        cosine=_mean_cosine(a, b),
        r2=linear.r2 if linear else None,
        r2_weighted=linear.r2_weighted if linear else None,
        cca=linear.cca if linear else None,
        procrustes=procrustes,
        disparity=disparity,
        shared_correlation=_pearson(a[shared], b[shared]),
        retained=min(pc_a.retained, pc_b.retained) if pc_a and pc_b else None,
        chance_r2=linear.chance if linear else None,
        **chance._asdict(),
    )


def jaccard(a: SparseCodes, b: SparseCodes) -> Float[torch.Tensor, " samples"]:
    """Overlap of the supports of every sample; 1 where both are empty."""
    # codes without their empty places: -1 and -2 are equal to no latent and not to each other
    of_a = a.indices.masked_fill(a.values == 0, -1)
    of_b = b.indices.masked_fill(b.values == 0, -2).to(of_a.device)
    together = torch.cat([of_a, of_b], 1).sort(-1).values
    both = ((together[:, 1:] == together[:, :-1]) & (together[:, 1:] >= 0)).sum(-1)
    either = (of_a >= 0).sum(-1) + (of_b >= 0).sum(-1) - both
    full = torch.ones(len(of_a), device=of_a.device)
    return torch.where(either > 0, both / either.clamp_min(1), full)


class _Components(NamedTuple):
    basis: Float[torch.Tensor, "samples components"]
    """Orthonormal columns: principal components over their singular values."""
    variance: Float[torch.Tensor, " components"]
    retained: float


class _LinearFit(NamedTuple):
    r2: float | None
    r2_weighted: float | None
    cca: float | None
    chance: float


class _Chance(NamedTuple):
    chance_jaccard: float | None = None
    chance_cosine: float | None = None
    chance_cca: float | None = None
    chance_procrustes: float | None = None


def _by_chance(
    encoder: SparseCodes,
    other: SparseCodes,
    a: Float[torch.Tensor, "samples active"],
    b: Float[torch.Tensor, "samples active"],
    pc_a: _Components | None,
    pc_b: _Components | None,
) -> _Chance:
    """The measures with every sample's code against another sample's."""
    n = len(a)
    if n < 2:
        return _Chance()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    moved = torch.empty_like(order)
    # one cycle through all samples: none stays where it was
    moved[order] = order.roll(1)
    moved = moved.to(a.device)
    cca = None
    if pc_a is not None and pc_b is not None:
        cca = _linear_fit(pc_a, pc_b._replace(basis=pc_b.basis[moved])).cca
    return _Chance(
        jaccard(encoder, other.pick(moved)).mean().item(),
        _mean_cosine(a, b[moved]),
        cca,
        _procrustes(a, b[moved])[0],
    )


def _mean_cosine(
    a: Float[torch.Tensor, "samples active"], b: Float[torch.Tensor, "samples active"]
) -> float:
    """1 where both codes are 0."""
    norms = a.norm(dim=-1) * b.norm(dim=-1)
    both_zero = (a.norm(dim=-1) == 0) & (b.norm(dim=-1) == 0)
    return torch.where(norms > 0, (a * b).sum(-1) / norms, both_zero.double()).mean().item()


def _dense_on_active(
    a: SparseCodes, b: SparseCodes
) -> tuple[Float[torch.Tensor, "samples active"], Float[torch.Tensor, "samples active"]]:
    """Both codes on the latents that one of them uses anywhere, in float64."""
    indices = torch.cat([a.indices, b.indices], 1)
    active, place = indices.unique(return_inverse=True)
    width = a.indices.shape[1]
    both: list[torch.Tensor] = []
    for codes, at in ((a, place[:, :width]), (b, place[:, width:])):
        dense = torch.zeros(len(indices), len(active), device=indices.device, dtype=torch.float64)
        # places that are filled up hold 0 at a latent that may be in the code
        both.append(dense.scatter_add_(1, at, codes.values.double()))
    return both[0], both[1]


def _components(
    codes: Float[torch.Tensor, "samples active"], n_components: int
) -> _Components | None:
    centred = codes - codes.mean(0)
    variance, basis = torch.linalg.eigh(centred @ centred.T)
    total = variance.clamp_min(0).sum().item()
    # ascending; centring takes one dimension
    some = min(n_components, len(codes) - 1)
    variance, basis = variance.flip(0)[:some], basis.flip(1)[:, :some]
    kept = variance > _NEGLIGIBLE * variance[:1]
    if total <= 0 or not kept.any():
        return None
    variance = variance[kept]
    return _Components(basis[:, kept], variance, variance.sum().item() / total)


def _linear_fit(a: _Components, b: _Components) -> _LinearFit:
    overlap = a.basis.T @ b.basis
    explained = overlap.square()
    # row i: how much of component i of a the components of b explain
    of_a, of_b = explained.sum(1), explained.sum(0)
    weighted = [
        (of * c.variance).sum().item() / c.variance.sum().item() for of, c in ((of_a, a), (of_b, b))
    ]
    n = len(a.basis)
    return _LinearFit(
        r2=(of_a.mean().item() + of_b.mean().item()) / 2,
        r2_weighted=sum(weighted) / 2,
        cca=torch.linalg.svdvals(overlap).clamp_max(1).mean().item(),
        chance=(a.basis.shape[1] + b.basis.shape[1]) / 2 / (n - 1),
    )


def _procrustes(
    a: Float[torch.Tensor, "samples active"], b: Float[torch.Tensor, "samples active"]
) -> tuple[float | None, float | None]:
    """The trace norm of a^T b is that of the roots of the samples' Gram matrices, which are small
    where there are many latents."""

    def root(z: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(z @ z.T)
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    def trace_norm(x: torch.Tensor, y: torch.Tensor) -> float:
        return torch.linalg.svdvals(root(x) @ root(y)).sum().item()

    size_a, size_b = a.norm().item(), b.norm().item()
    relative = disparity = None
    if size_b > 0:
        squared = size_a**2 + size_b**2 - 2 * trace_norm(a, b)
        relative = max(squared, 0.0) ** 0.5 / size_b
    a, b = a - a.mean(0), b - b.mean(0)
    scale = a.norm().item() * b.norm().item()
    if scale > 0:
        disparity = max(1 - (trace_norm(a, b) / scale) ** 2, 0.0)
    return relative, disparity


def _pearson(a: Float[torch.Tensor, " shared"], b: Float[torch.Tensor, " shared"]) -> float | None:
    if len(a) < 2:
        return None
    a, b = a - a.mean(), b - b.mean()
    scale = a.norm() * b.norm()
    return ((a @ b) / scale).item() if scale > 0 else None
