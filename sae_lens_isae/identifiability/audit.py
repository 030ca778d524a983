"""Which assumptions of the identifiability theory does a trained SAE meet on real activations?

Measures every quantity of Theorem 3.6 of Nelson et al. 2026, the coherence and self-consistency
bounds of the latent self-consistency paper (see REFERENCES.md), and the health of the dictionary.
Codes, errors and bounds are relative: each activation is taken at |x - b| = 1, as Nelson et al.
normalise their inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from sae_lens_isae.contexts.examples import LatentExamples
from sae_lens_isae.contexts.promoted import promoted_by_all
from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability.audit_report import AuditReport, ShownLatents
from sae_lens_isae.identifiability.audit_results import Audit, SelfConsistency
from sae_lens_isae.identifiability.dictionary import (
    NearestAtoms,
    lipschitz_constant,
    measure_coherence,
    measure_health,
    nearest_atoms,
)
from sae_lens_isae.identifiability.distribution import Conditioning, Distribution
from sae_lens_isae.identifiability.latents import LatentCounts
from sae_lens_isae.identifiability.supports import (
    Supports,
    conditioning,
    diversity,
    least_squares_gap,
    n_affordable,
    richness,
)
from sae_lens_isae.identifiability.theory import RIP_THRESHOLDS, Theorem
from sae_lens_isae.identifiability.verdict import assumptions
from sae_lens_isae.inputs.activation_source import ActivationSource, NumberedRows
from sae_lens_isae.inputs.activations import AnyActivations, as_source
from sae_lens_isae.inputs.comparable import check_comparable, what_seeds_varied
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.inputs.saes import AnySAEs, named_saes
from sae_lens_isae.progress import progress_shown
from sae_lens_isae.solvers.codes import SparseCodes

_CODE_BYTES = 2**28
_MAX_BATCH = 1024
_N_LEAST_SQUARES = 256


@torch.no_grad()
def audit(
    saes: AnySAEs,
    activations: AnyActivations = None,
    *,
    n_kept: int = 4096,
    n_supports: int = 1024,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> AuditReport:
    """Measure SAEs on activations, which are read once and in batches.

    Several SAEs are also judged together, as the theorem speaks of two.

    Args:
        saes: One or several, loaded, or by their names (folders, `release/sae_id`).
        activations: At the SAEs' hook, not normalised: a tensor, a file, a generator
            (`open_activations`), or None to run the model that the SAEs' metadata name.
        n_kept: Samples whose codes are kept for what needs pairs or groups of samples.
        n_supports: Supports whose eigenvalues are computed, fewer where they are large.
        seed: Of the random pairs.
        force: Audit SAEs together even if they are for different models or hooks.
        progress: Show progress bars.

    Raises:
        InputError: d_in differs, activations are empty or not finite, a number is not positive, no
            sample has an active latent, or the SAEs are for different activations.

    Examples:
        >>> import torch
        >>> from sae_lens import TopKSAE, TopKSAEConfig
        >>> import sae_lens_isae
        >>> _ = torch.manual_seed(0)
        >>> sae = TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=2))
        >>> report = sae_lens_isae.audit(sae, torch.randn(100, 8), progress=False)
        >>> [a.name for a in report[0].assumptions if a.verdict == "refuted"]
        ['A1', 'A3', 'A6']
    """
    for setting, value in {"n_kept": n_kept, "n_supports": n_supports}.items():
        if value < 1:
            raise InputError(f"{setting} must be >= 1, got {value}")
    with progress_shown(progress):
        named = named_saes(saes)
        if not named:
            raise InputError("no SAE was given")
        differences = [*check_comparable(named, force=force), *what_seeds_varied(named)]
        runs = [_Run(name, LinearSAE(s, name), n_kept, n_supports) for name, s in named.items()]
        source = as_source(activations, named)
        n_samples = _stream(source, runs)
        measured_on = _MeasuredOn(
            activations=source.description,
            n_samples=n_samples,
            n_zero_rows=source.n_samples - n_samples,
            differences=differences,
        )
        return AuditReport(
            saes=[_conclude(run, measured_on, n_supports, seed) for run in runs],
            shown=ShownLatents(
                latents={run.name: run.latents() for run in runs},
                examples={run.name: run.examples for run in runs},
                origin=source.origin(),
                promoted=promoted_by_all(source, {run.name: run.linear for run in runs}),
                neuronpedia_ids={n: sae.cfg.metadata.neuronpedia_id for n, sae in named.items()},
            ),
        )


def _stream(source: ActivationSource, runs: Sequence[_Run]) -> int:
    """One pass over the activations. Returns the number of those that are not zero."""
    latents = sum(run.linear.d_sae for run in runs)
    size = max(1, min(_MAX_BATCH, _CODE_BYTES // (4 * latents)))
    n_samples = 0
    named = ", ".join(run.name for run in runs)
    for batch in source.non_zero_batches(size, f"Auditing {named}"):
        n_samples += len(batch.activations)
        for run in runs:
            run.add(batch)
    return n_samples


@dataclass(frozen=True)
class _MeasuredOn:
    """What the SAEs of an audit were measured on."""

    activations: str
    n_samples: int
    n_zero_rows: int
    differences: list[str]


def _conclude(run: _Run, measured_on: _MeasuredOn, n_supports: int, seed: int) -> Audit:
    linear = run.linear
    codes, target = run.kept()
    generator = torch.Generator().manual_seed(seed)
    supports = Supports.of_codes(codes)
    # an even split into two random halves: each sample at most once
    order = torch.randperm(len(codes.indices), generator=generator).to(linear.device)
    half = len(order) // 2
    wanted = n_affordable(2 * supports.indices.shape[1], linear.d_in, n_supports)
    first, second = order[:half][:wanted], order[half : 2 * half][:wanted]
    # a single sample is its own only pair
    first, second = (first, second) if half else (order, order)
    pairs = _conditioning(linear, supports.pick(first).union(supports.pick(second)))
    rows = order[:_N_LEAST_SQUARES]
    gap, gain = least_squares_gap(
        linear.atoms,
        SparseCodes(codes.indices[rows], codes.values[rows], linear.d_sae),
        target[rows],
    )
    error, l0, norm = run.distributions()
    rich = richness(supports, linear.d_sae, n_examined=2048, seed=seed)
    diverse = diversity(codes)
    least_squares = Distribution.of(gap)
    norm_spread = run.norm_spread()
    k = max(1, int(l0.max))
    proxy = None if run.proxies is None else _conditioning(linear, run.proxies)
    theorem = Theorem(
        epsilon=error.max,
        delta=pairs.delta.max,
        # no matrix of k codes has a singular value above the largest norm of a code
        zeta=norm.max if diverse.zeta is None else diverse.zeta,
        k=k,
    )
    return Audit(
        name=run.name,
        architecture=linear.cfg.architecture(),
        d_in=linear.d_in,
        d_sae=linear.d_sae,
        **vars(measured_on),
        n_at_offset=run.n_at_offset,
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
        coherence=measure_coherence(run.nearest, k),
        self_consistency=run.self_consistency(),
        health=measure_health(linear, run.counts),
        assumptions=assumptions(
            theorem, pairs, rich, diverse, least_squares, norm_spread, measured_on.n_samples
        ),
        theorem=theorem,
    )


class _Run:
    """One SAE on the stream of activations."""

    def __init__(self, name: str, linear: LinearSAE, n_kept: int, n_supports: int) -> None:
        self.name = name
        self.linear = linear
        self.counts = LatentCounts(linear.d_sae)
        self.examples = LatentExamples(linear.d_sae)
        self.n_at_offset = 0
        self._n_kept = n_kept
        self._n_proxies = n_affordable(2 * (linear.k or 1), linear.d_in, n_supports)
        self._proxies: list[torch.Tensor] = []
        self._codes: list[SparseCodes] = []
        self._targets: list[torch.Tensor] = []
        self._per_sample: dict[str, list[torch.Tensor]] = {
            name: [] for name in ("norm", "error", "l0", "code", "moved", "moved_in_support")
        }

    def add(self, batch: NumberedRows) -> None:
        x = batch.activations.to(self.linear.device)
        code = self.linear.encode(x)
        self.counts.add(code.codes)
        self.examples.add(code.codes, batch.numbers)
        norm = (x - code.offset).norm(dim=-1)
        there = norm > 0
        self.n_at_offset += int((~there).sum())
        x_hat = self.linear.decode(code.codes, code.offset)
        again = self.linear.encode(x_hat).codes - code.codes
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
        proxies = self.linear.proxy_supports(code, missing) if missing > 0 else None
        if proxies is not None:
            self._proxies.append(proxies)

    @cached_property
    def nearest(self) -> NearestAtoms:
        """The nearest other atom of each."""
        return nearest_atoms(self.linear)

    def latents(self) -> pd.DataFrame:
        """Numbers of every latent, for the page."""
        return pd.DataFrame(
            {
                "latent": np.arange(self.linear.d_sae),
                "firing_rate": self.counts.firing_rate,
                "mean_magnitude": self.counts.mean_magnitude,
                "nearest_cosine": self.nearest.cosine.numpy().astype(float),
                "nearest": self.nearest.latent.numpy(),
            }
        )

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
        lipschitz = lipschitz_constant(self.linear)
        bound = None if lipschitz is None or lipschitz == 0 else inside.mean / lipschitz
        return SelfConsistency(
            residual=moved, residual_in_support=inside, lipschitz=lipschitz, lower_bound=bound
        )


def _conditioning(linear: LinearSAE, supports: Supports) -> Conditioning:
    delta, r_arip = conditioning(linear.atoms, supports)
    return Conditioning(
        Distribution.of(delta),
        float(r_arip.mean()),
        {name: float((delta < bound).float().mean()) for name, bound in RIP_THRESHOLDS.items()},
        delta.cpu().tolist(),
    )
