"""Which assumptions of the identifiability theory does a trained SAE meet on real activations?

Measures every quantity of Theorem 3.6 of paper 1, the coherence and self-consistency bounds of
paper 5, and the health of the dictionary. Codes, errors and bounds are relative: each activation is
taken at |x - b| = 1, as the paper normalises its inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sae_lens import SAE

from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability.activations import Activations, as_source
from sae_lens_isae.identifiability.comparable import check_comparable
from sae_lens_isae.identifiability.dictionary import (
    Coherence,
    Health,
    lipschitz_constant,
    measure_coherence,
    measure_health,
)
from sae_lens_isae.identifiability.latents import LatentCounts
from sae_lens_isae.identifiability.linear_model import LinearModel
from sae_lens_isae.identifiability.supports import (
    Diversity,
    Richness,
    Supports,
    conditioning,
    diversity,
    least_squares_gap,
    n_affordable,
    richness,
)
from sae_lens_isae.identifiability.theory import RIP_THRESHOLDS, Theorem
from sae_lens_isae.identifiability.verdict import (
    Assumption,
    assumptions,
    conclusion,
    condition,
    joint_theorem,
)
from sae_lens_isae.solvers.codes import SparseCodes

SCHEMA = "sae-lens-isae/audit/2"

_CODE_BYTES = 2**28
_MAX_BATCH = 1024
_N_LEAST_SQUARES = 256


@dataclass(frozen=True)
class Distribution:
    """Mean, quantiles and maximum of something measured per sample or per support."""

    mean: float
    median: float
    p95: float
    p99: float
    max: float
    n: int

    @classmethod
    def of(cls, values: Float[torch.Tensor, " n"]) -> Distribution:
        """Of one value or more."""
        # torch.quantile refuses more than 2^24 values
        found = values.double().cpu().numpy()
        median, p95, p99 = (float(q) for q in np.quantile(found, (0.5, 0.95, 0.99)))
        return cls(
            mean=float(found.mean()),
            median=median,
            p95=p95,
            p99=p99,
            max=float(found.max()),
            n=len(found),
        )


@dataclass(frozen=True)
class Conditioning:
    """The aRIP constant delta_S and R_aRIP over supports of one kind."""

    delta: Distribution
    r_arip: float
    """Mean R_aRIP(S) (equation 6)."""
    share_below: dict[str, float]
    """Share of the supports with delta_S below each of `RIP_THRESHOLDS`."""
    deltas: list[float] = field(repr=False)


@dataclass(frozen=True)
class SelfConsistency:
    """One more decode-encode pass (paper 5): how far does the code move?"""

    residual: Distribution
    """|F(z) - z| / |z|."""
    residual_in_support: Distribution
    """The same on the latents of z alone; what paper 5 counts for TopK-like codes."""
    lipschitz: float | None
    """Corollary 3's constant |W_enc W_dec|_2 of the map F; None where the encoder is not an
    activation function after one linear map."""
    lower_bound: float | None
    """Theorem 2: if the dictionary were the true one, the code would be wrong by at least this
    share of its norm, on average. In-support residual over the Lipschitz constant."""


@dataclass(frozen=True)
class Audit:
    """What was measured of one SAE."""

    name: str
    architecture: str
    d_in: int
    d_sae: int
    n_samples: int
    activations: str
    n_at_offset: int
    """Samples equal to the decoder's bias: they have no relative error and are left out."""
    n_zero_rows: int
    """All-zero activations, which are no tokens' and are left out."""
    differences: list[str]
    """How the SAEs audited together differ in what they are for."""
    error: Distribution
    """epsilon: |x - x_hat| / |x - b|."""
    norm_spread: float
    """Largest |x - b| over the median one: how far from bounded the data are in their own units."""
    l0: Distribution
    """Active latents per sample."""
    code_norm: Distribution
    """|z| at |x - b| = 1."""
    proxy: Conditioning | None
    """On the 2k largest pre-activations of each sample (paper 1, 'Measuring aRIP'); None for
    architectures without pre-activations or without k."""
    pairs: Conditioning
    """On unions of the supports of two random samples (Definition 3.3)."""
    richness: Richness
    diversity: Diversity
    least_squares: Distribution
    """|z - z_LS| / |z| (A6)."""
    least_squares_gain: float
    """Mean share of the squared error that refitting the coefficients removes."""
    coherence: Coherence
    self_consistency: SelfConsistency
    health: Health
    assumptions: list[Assumption]
    theorem: Theorem
    """With zeta as measured, or at its largest conceivable where that is not estimable."""

    def to_dict(self) -> dict[str, Any]:
        """JSON data; infinite bounds become None."""
        data = asdict(self)
        data["theorem"] |= _theorem_dict(self.theorem, self.code_norm.max, self.diversity)
        return _finite(data)


@torch.no_grad()
def audit(
    sae: SAE[Any],
    activations: Activations,
    *,
    name: str = "SAE",
    n_kept: int = 4096,
    n_supports: int = 1024,
    seed: int = 0,
) -> Audit:
    """Measure one SAE on activations, which are read once and in batches.

    Args:
        activations: At the SAE's hook, not normalised.
        n_kept: Samples whose codes are kept for what needs pairs or groups of samples.
        n_supports: Supports whose eigenvalues are computed, fewer where they are large.
        seed: Of the random pairs.

    Raises:
        InputError: d_in differs, activations are empty or not finite, a number is not positive, or
            no sample has an active latent.
    """
    found = audit_together(
        {name: sae}, activations, n_kept=n_kept, n_supports=n_supports, seed=seed
    )
    return found[0]


@torch.no_grad()
def audit_together(
    saes: Mapping[str, SAE[Any]],
    activations: Activations,
    *,
    n_kept: int = 4096,
    n_supports: int = 1024,
    seed: int = 0,
    force: bool = False,
) -> list[Audit]:
    """Measure several SAEs on the same activations, as a verdict on all of them needs.

    Args:
        force: Audit SAEs for different models or hooks together all the same.

    Raises:
        InputError: As `audit`; or the SAEs are for different activations, and `force` is off.
    """
    for setting, value in {"n_kept": n_kept, "n_supports": n_supports}.items():
        if value < 1:
            raise InputError(f"{setting} must be >= 1, got {value}")
    if not saes:
        raise InputError("no SAE was given")
    differences = check_comparable(saes, force=force)
    streams = {
        name: _Stream(name, LinearModel(sae, name), n_kept, n_supports)
        for name, sae in saes.items()
    }
    sources = {name: as_source(activations, stream.model.d_in) for name, stream in streams.items()}
    source = next(iter(sources.values()))
    latents = sum(stream.model.d_sae for stream in streams.values())
    size = max(1, min(_MAX_BATCH, _CODE_BYTES // (4 * latents)))
    n_samples = 0
    for x in source.non_zero_batches(size, f"Auditing {', '.join(saes)}"):
        n_samples += len(x)
        for stream in streams.values():
            stream.add(x)
    if not n_samples:
        raise InputError(f"{source.description}: all {source.n_samples} activations are zero")
    about = _About(
        activations=source.description,
        n_samples=n_samples,
        n_zero_rows=source.n_samples - n_samples,
        differences=differences,
    )
    return [_conclude(stream, about, n_supports, seed) for stream in streams.values()]


@dataclass(frozen=True)
class _About:
    """What the SAEs of an audit were measured on."""

    activations: str
    n_samples: int
    n_zero_rows: int
    differences: list[str]


def _conclude(stream: _Stream, about: _About, n_supports: int, seed: int) -> Audit:
    model = stream.model
    codes, target = stream.kept()
    generator = torch.Generator().manual_seed(seed)
    supports = Supports.of_codes(codes)
    # an even split into two random halves: each sample at most once
    order = torch.randperm(len(codes.indices), generator=generator).to(model.device)
    half = len(order) // 2
    wanted = n_affordable(2 * supports.indices.shape[1], model.d_in, n_supports)
    first, second = order[:half][:wanted], order[half : 2 * half][:wanted]
    # a single sample is its own only pair
    first, second = (first, second) if half else (order, order)
    pairs = _conditioning(model, supports.pick(first).union(supports.pick(second)))
    rows = order[:_N_LEAST_SQUARES]
    gap, gain = least_squares_gap(
        model.atoms,
        SparseCodes(codes.indices[rows], codes.values[rows], model.d_sae),
        target[rows],
    )
    error, l0, norm = stream.distributions()
    rich = richness(supports, model.d_sae, n_examined=2048, seed=seed)
    diverse = diversity(codes)
    least_squares = Distribution.of(gap)
    norm_spread = stream.norm_spread()
    k = max(1, int(l0.max))
    proxy = None if stream.proxies is None else _conditioning(model, stream.proxies)
    theorem = Theorem(
        epsilon=error.max,
        delta=pairs.delta.max,
        # no matrix of k codes has a singular value above the largest norm of a code
        zeta=norm.max if diverse.zeta is None else diverse.zeta,
        k=k,
    )
    return Audit(
        name=stream.name,
        architecture=model.cfg.architecture(),
        d_in=model.d_in,
        d_sae=model.d_sae,
        **vars(about),
        n_at_offset=stream.n_at_offset,
        error=error,
        norm_spread=norm_spread,
        l0=l0,
        code_norm=norm,
        proxy=proxy,
        pairs=pairs,
        richness=rich,
        diversity=diverse,
        least_squares=least_squares,
        least_squares_gain=float(gain.mean()),
        coherence=measure_coherence(model, k),
        self_consistency=stream.self_consistency(),
        health=measure_health(model, stream.counts),
        assumptions=assumptions(
            theorem, pairs, rich, diverse, least_squares, norm_spread, about.n_samples
        ),
        theorem=theorem,
    )


def audits_to_dict(audits: Sequence[Audit]) -> dict[str, Any]:
    """JSON data of one or more audits and what the theorem says of them together."""
    theorem = joint_theorem(audits)
    largest = max(a.code_norm.max for a in audits)
    diversities = [a.diversity for a in audits]
    joint = asdict(theorem) | _theorem_dict(theorem, largest, *diversities)
    return {
        "schema": SCHEMA,
        "saes": [a.to_dict() for a in audits],
        "theorem": _finite(joint),
        "conclusion": conclusion(audits),
    }


class _Stream:
    """One pass over the activations."""

    def __init__(self, name: str, model: LinearModel, n_kept: int, n_supports: int) -> None:
        self.name = name
        self.model = model
        self.counts = LatentCounts(model.d_sae)
        self.n_at_offset = 0
        self._n_kept = n_kept
        self._n_proxies = n_affordable(2 * (model.k or 1), model.d_in, n_supports)
        self._proxies: list[torch.Tensor] = []
        self._codes: list[SparseCodes] = []
        self._targets: list[torch.Tensor] = []
        self._per_sample: dict[str, list[torch.Tensor]] = {
            name: [] for name in ("norm", "error", "l0", "code", "moved", "moved_in_support")
        }

    def add(self, x: Float[torch.Tensor, "batch d_in"]) -> None:
        x = x.to(self.model.device)
        code = self.model.encode(x)
        self.counts.add(code.codes)
        norm = (x - code.offset).norm(dim=-1)
        there = norm > 0
        self.n_at_offset += int((~there).sum())
        x_hat = self.model.decode(code.codes, code.offset)
        again = self.model.encode(x_hat).codes - code.codes
        active = code.codes != 0
        size = code.codes.norm(dim=-1)
        moved = again.norm(dim=-1), (again * active).norm(dim=-1)
        for name, values in {
            "norm": norm,
            "error": (x - x_hat).norm(dim=-1) / norm,
            "l0": active.sum(-1).float(),
            "code": size / norm,
            # a code of zero that stays zero has not moved
            "moved": torch.where(size > 0, moved[0] / size, 0.0),
            "moved_in_support": torch.where(size > 0, moved[1] / size, 0.0),
        }.items():
            self._per_sample[name].append(values[there].cpu())
        missing = self._n_kept - sum(len(c.indices) for c in self._codes)
        rows = (there & (size > 0)).nonzero()[:missing, 0]
        if missing > 0 and len(rows):
            kept = SparseCodes.from_dense(code.codes[rows] / norm[rows, None])
            self._codes.append(kept)
            self._targets.append((x - code.offset)[rows] / norm[rows, None])
        missing = self._n_proxies - sum(map(len, self._proxies))
        proxies = self.model.proxy_supports(code, missing) if missing > 0 else None
        if proxies is not None:
            self._proxies.append(proxies)

    @property
    def proxies(self) -> Supports | None:
        """The 2k largest pre-activations of some samples."""
        if not self._proxies:
            return None
        indices = torch.cat(self._proxies)
        return Supports(indices, torch.ones_like(indices, dtype=torch.bool))

    def kept(self) -> tuple[SparseCodes, Float[torch.Tensor, "kept d_in"]]:
        """Codes and targets at |x - b| = 1."""
        if not self._codes:
            raise InputError(f"{self.name}: no sample has an active latent")
        return SparseCodes.concatenate(self._codes), torch.cat(self._targets)

    def distributions(self) -> tuple[Distribution, Distribution, Distribution]:
        """Relative error, L0, and norm of the codes."""
        return self._distribution("error"), self._distribution("l0"), self._distribution("code")

    def _distribution(self, name: str) -> Distribution:
        return Distribution.of(torch.cat(self._per_sample[name]))

    def norm_spread(self) -> float:
        norm = torch.cat(self._per_sample["norm"])
        return float(norm.max() / norm.median())

    def self_consistency(self) -> SelfConsistency:
        moved = self._distribution("moved")
        inside = self._distribution("moved_in_support")
        lipschitz = lipschitz_constant(self.model)
        bound = None if lipschitz is None or lipschitz == 0 else inside.mean / lipschitz
        return SelfConsistency(moved, inside, lipschitz, bound)


def _conditioning(model: LinearModel, supports: Supports) -> Conditioning:
    delta, r_arip = conditioning(model.atoms, supports)
    return Conditioning(
        Distribution.of(delta),
        float(r_arip.mean()),
        {name: float((delta < bound).float().mean()) for name, bound in RIP_THRESHOLDS.items()},
        delta.cpu().tolist(),
    )


def _theorem_dict(theorem: Theorem, largest_code: float, *diversities: Diversity) -> dict[str, Any]:
    return {
        "alpha": theorem.alpha,
        "eta": theorem.eta,
        "largest_epsilon": theorem.largest_epsilon,
        "condition": condition(theorem, *diversities),
        "proof_holds": theorem.proof_holds,
        "dictionary_bound": theorem.dictionary_bound,
        "dictionary_bound_is_vacuous": theorem.dictionary_bound_is_vacuous,
        "code_bound": theorem.code_bound,
        "code_bound_is_vacuous": theorem.code_bound_is_vacuous(largest_code),
    }


def _finite(data: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
