"""Would another training run have found the same dictionary and the same codes?

Paper 1, section 4, 'Metrics', for all pairs of two or more SAEs: dictionary cosine similarity
(DCS), intersection over union (IoU) of the supports and l2 error of the codes, after matching the
dictionaries up to permutation and sign; with the SAEs' own encoders, and with orthogonal matching
pursuit on their dictionaries as an oracle, which tells what the dictionary does from what the
encoder does. Where neither SAE's codes have signs, their latents are matched up to permutation
alone: an SAE that has latents for both signs of a concept would otherwise find the wrong one of
them as often as not. The oracle's codes always have signs.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from scipy.stats import bootstrap
from tqdm.auto import tqdm

from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability.activations import Activations, ActivationSource, as_source
from sae_lens_isae.identifiability.latents import LatentCounts, PairCounts, latent_table
from sae_lens_isae.identifiability.linear_model import LinearCode, LinearModel
from sae_lens_isae.identifiability.matching import DictionaryMatch, match_dictionaries
from sae_lens_isae.losses.arip import ARIPMeasurement
from sae_lens_isae.solvers import omp

SCHEMA = "sae-lens-isae/pairwise/1"
"""Written into the JSON; the number grows when a field changes its meaning or goes away."""

_CODE_BYTES = 2**29
"""Dense codes of all SAEs for one batch take no more than this."""
_MAX_BATCH = 1024
_MAX_ORACLE_K = 256
"""OMP with more atoms than this takes hours and hardly deserves the name sparse."""
_N_RESAMPLES = 999
_CONFIDENCE = 0.95
_N_BINS = 20


@dataclass(frozen=True)
class Estimate:
    """A mean over activations with its bootstrap confidence interval (95%, percentile).

    The interval treats activations as independent draws; tokens of one text are not quite that.
    It is None for a single activation.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CodeAgreement:
    """How far the codes of two SAEs agree after matching."""

    iou: Estimate
    """Mean over samples of |S & S'| / |S | S'| of the supports; 1 where both are empty."""
    l2: Estimate
    """Mean over samples of |z - Pi z'|, over the mean code norm of both SAEs."""
    n_samples: int
    iou_histogram: list[int] = field(repr=False)
    """Number of samples in each of 20 equal bins of IoU from 0 to 1."""


@dataclass(frozen=True)
class PairIdentifiability:
    """How far two SAEs agree; 1, 1, 1 and 0 for the same SAE up to permutation and sign."""

    a: str
    b: str
    dcs: float
    """Mean |cosine| under the matching that makes it largest."""
    dcs_gap: float
    """No matching has a DCS above dcs + dcs_gap; 0 up to 4,096 latents."""
    signed_mcc: float
    """Mean cosine under the matching that makes it largest (Song et al. 2025): a feature found with
    the opposite sign does not count."""
    sae: CodeAgreement
    """With the SAEs' own encoders."""
    oracle: CodeAgreement | None
    """With orthogonal matching pursuit on both dictionaries; None where it was left out."""
    n_unmatched: int
    """Latents of the larger SAE without partner; where active they count as disagreement."""
    same_weights: bool
    """The same SAE given twice: it agrees with itself by construction."""
    match: DictionaryMatch = field(repr=False)
    """Of the SAEs' own codes."""


@dataclass(frozen=True)
class SAESummary:
    """What one SAE does on the activations."""

    name: str
    architecture: str
    d_sae: int
    l0: float
    """Mean number of active latents."""
    mse: float
    """Mean |x - x_hat|^2 / |x|^2."""
    r_arip: float | None
    """Mean R_aRIP over the 2k largest pre-activations of each sample (the R_S column of paper 1);
    None without pre-activations or where 2k exceeds the latents."""
    n_dead: int
    """Latents that no sample activates."""
    n_zero_atoms: int
    """Latents whose atom is zero: they can do nothing."""
    oracle_k: str | None
    """Atoms per sample that the oracle takes, or why there is none."""


@dataclass(frozen=True)
class PairwiseReport:
    """The comparison of all pairs."""

    saes: list[SAESummary]
    pairs: list[PairIdentifiability]
    latents: pd.DataFrame = field(repr=False)
    """One row per SAE and latent; see `latent_table`."""
    n_samples: int
    activations: str
    found_cosine: float

    def to_dict(self) -> dict[str, Any]:
        """JSON data, without the table of latents."""
        pairs: list[dict[str, Any]] = []
        for pair in self.pairs:
            row = {k: v for k, v in vars(pair).items() if k not in ("match", "sae", "oracle")}
            row["sae"] = asdict(pair.sae)
            row["oracle"] = None if pair.oracle is None else asdict(pair.oracle)
            pairs.append(row)
        return {
            "schema": SCHEMA,
            "activations": self.activations,
            "n_samples": self.n_samples,
            "confidence": _CONFIDENCE,
            "found_cosine": self.found_cosine,
            "saes": [asdict(sae) for sae in self.saes],
            "pairs": pairs,
        }


@torch.no_grad()
def pairwise_identifiability(
    saes: Mapping[str, SAE[Any]] | Sequence[SAE[Any]],
    activations: Activations,
    *,
    n_oracle_samples: int = 1024,
    oracle_k: int | None = None,
    found_cosine: float = 0.9,
    seed: int = 0,
) -> PairwiseReport:
    """Compare all pairs of two or more SAEs on the same activations. Any SAELens SAEs will do.

    Codes are compared in the space of the activations, as if every atom had unit norm. Activations
    are read once and in batches; each SAE encodes on its own device.

    Args:
        saes: By name, or in a list (then named by their position).
        activations: At the SAEs' hook, not normalised.
        n_oracle_samples: The oracle works on this many of them; 0 leaves it out.
        oracle_k: Atoms per sample for the oracle; by default the SAE's k, or without one as many
            as its own encoder uses on that sample.
        found_cosine: A latent counts as found in another SAE from this cosine on, after its sign.
        seed: Of the bootstrap.

    Raises:
        ValueError: Fewer than two SAEs, d_in differs, activations are empty, misshapen or not
            finite, an SAE holds NaN, or oracle_k exceeds a dictionary.
    """
    named = dict(saes) if isinstance(saes, Mapping) else {str(i): s for i, s in enumerate(saes)}
    if len(named) < 2:
        raise InputError(f"pairwise compares two or more SAEs, got {len(named)}")
    models = {name: LinearModel(sae) for name, sae in named.items()}
    dimensions = {model.d_in for model in models.values()}
    if len(dimensions) > 1:
        raise InputError(f"the SAEs have different d_in: {sorted(dimensions)}")
    source = as_source(activations, dimensions.pop())
    if oracle_k is not None and oracle_k > min(m.d_sae for m in models.values()):
        raise InputError(f"oracle_k = {oracle_k} exceeds the latents of an SAE")
    pairs = [
        _Pair(a, b, models[a], models[b])
        for a, b in tqdm(
            list(itertools.combinations(models, 2)),
            desc="Matching dictionaries",
            unit="pair",
            disable=len(models) < 3,
        )
    ]
    runs = {name: _Run(name, model, oracle_k) for name, model in models.items()}
    _stream(source, runs, pairs, n_oracle_samples)
    rng = np.random.default_rng(seed)
    return PairwiseReport(
        saes=[run.summary(n_oracle_samples) for run in runs.values()],
        pairs=[pair.result(rng) for pair in pairs],
        latents=latent_table(
            {name: run.counts for name, run in runs.items()},
            {(pair.a, pair.b): pair.latents for pair in pairs},
            found_cosine,
        ),
        n_samples=source.n_samples,
        activations=source.description,
        found_cosine=found_cosine,
    )


def _stream(
    source: ActivationSource,
    runs: dict[str, _Run],
    pairs: list[_Pair],
    n_oracle_samples: int,
) -> None:
    """One pass over the activations: every SAE encodes a batch once, for all its pairs."""
    latents = sum(run.model.d_sae for run in runs.values())
    size = max(1, min(_MAX_BATCH, _CODE_BYTES // (4 * latents)))
    left = n_oracle_samples
    with tqdm(
        total=source.n_samples, desc="Comparing codes", unit="sample", leave=False
    ) as progress:
        for x in source.batches(size):
            codes = {name: run.encode(x) for name, run in runs.items()}
            for pair in pairs:
                pair.sae.add(codes[pair.a].codes, codes[pair.b].codes)
                pair.latents.add(codes[pair.a].codes, codes[pair.b].codes)
            if left > 0:
                _compare_oracles(x[:left], codes, runs, pairs)
                left -= len(x)
            progress.update(len(x))


def _compare_oracles(
    x: Float[torch.Tensor, "batch d_in"],
    codes: dict[str, LinearCode],
    runs: dict[str, _Run],
    pairs: list[_Pair],
) -> None:
    found = {name: run.oracle(x, codes[name]) for name, run in runs.items()}
    for pair in pairs:
        of_a, of_b = found[pair.a], found[pair.b]
        if of_a is not None and of_b is not None:
            pair.oracle.add(of_a, of_b)


class _Run:
    """One SAE on the stream of activations."""

    def __init__(self, name: str, model: LinearModel, oracle_k: int | None) -> None:
        self.name = name
        self.model = model
        self.counts = LatentCounts(model.d_sae)
        self._oracle_k = oracle_k
        self._no_oracle: str | None = None
        self._error = 0.0
        self._r_arip = 0.0
        self._n = 0
        self._n_supports = 0

    def encode(self, x: Float[torch.Tensor, "batch d_in"]) -> LinearCode:
        code = self.model.encode(x)
        x = x.to(self.model.device)
        self.counts.add(code.codes)
        energy = x.square().sum(-1)
        error = (x - self.model.decode(code.codes, code.offset)).square().sum(-1)
        self._error += torch.where(energy > 0, error / energy, 0.0).sum().item()
        self._n += len(x)
        # exact eigenvalues are costly and settle quickly
        missing = _MAX_BATCH - self._n_supports
        supports = self.model.proxy_supports(code, missing) if missing > 0 else None
        if supports is not None:
            measured = ARIPMeasurement(self.model.atoms, supports)
            self._r_arip += measured.r_arip().item() * len(supports)
            self._n_supports += len(supports)
        return code

    def oracle(
        self, x: Float[torch.Tensor, "batch d_in"], code: LinearCode
    ) -> Float[torch.Tensor, "batch d_sae"] | None:
        """Codes by OMP on this dictionary, with as many atoms as the SAE uses."""
        if self._no_oracle is not None:
            return None
        n = len(x)
        k: int | Int[torch.Tensor, " batch"] | None = self._oracle_k or self.model.k
        if k is None:
            k = (code.codes[:n] != 0).sum(-1).cpu()
            if k.max() > _MAX_ORACLE_K:
                self._no_oracle = f"none: {int(k.max())} active latents, give oracle_k"
                warnings.warn(
                    f"{self.name}: up to {int(k.max())} latents are active, too many for the "
                    f"oracle; give oracle_k (--oracle-k) to have one",
                    stacklevel=2,
                )
                return None
        offset = code.offset[:n] if len(code.offset) > 1 else code.offset
        target = x.to(self.model.device) - offset
        return omp(target, self.model.atoms, k).to_dense()

    def summary(self, n_oracle_samples: int) -> SAESummary:
        oracle_k = self._no_oracle
        if n_oracle_samples > 0 and oracle_k is None:
            k = self._oracle_k or self.model.k
            oracle_k = "as many as its encoder" if k is None else str(k)
        return SAESummary(
            name=self.name,
            architecture=self.model.cfg.architecture(),
            d_sae=self.model.d_sae,
            l0=float(self.counts.active.sum()) / self._n,
            mse=self._error / self._n,
            r_arip=self._r_arip / self._n_supports if self._n_supports else None,
            n_dead=int((self.counts.active == 0).sum()),
            n_zero_atoms=int((self.model.atom_norm == 0).sum()),
            oracle_k=oracle_k,
        )


class _Pair:
    """Two SAEs: their matching, and what the stream of activations says about it."""

    def __init__(self, a: str, b: str, model_a: LinearModel, model_b: LinearModel) -> None:
        self.a, self.b = a, b
        self._up_to_sign = match_dictionaries(model_a.atoms, model_b.atoms)
        self._by_cosine = match_dictionaries(model_a.atoms, model_b.atoms, signed=True)
        # where codes have no signs, a latent and its opposite never fire for the same thing
        signed = model_a.signed or model_b.signed
        self.match = self._up_to_sign if signed else self._by_cosine
        self.sae = _Samples(self.match)
        self.oracle = _Samples(self._up_to_sign)
        self.latents = PairCounts(self.match)
        self._n_unmatched = abs(model_a.d_sae - model_b.d_sae)
        self._same = model_a.same_as(model_b)
        if self._n_unmatched:
            warnings.warn(
                f"{a} and {b}: dictionaries of {model_a.d_sae} and {model_b.d_sae} latents are "
                f"matched on the smaller one; {self._n_unmatched} latents of the larger have no "
                "partner",
                stacklevel=2,
            )

    def result(self, rng: np.random.Generator) -> PairIdentifiability:
        own = self.sae.agreement(rng)
        assert own is not None
        return PairIdentifiability(
            a=self.a,
            b=self.b,
            dcs=self._up_to_sign.dcs,
            dcs_gap=self._up_to_sign.gap,
            signed_mcc=self._by_cosine.dcs,
            sae=own,
            oracle=self.oracle.agreement(rng),
            n_unmatched=self._n_unmatched,
            same_weights=self._same,
            match=self.match,
        )


class _Samples:
    """IoU, distance and norm of every sample: what the means and their bootstrap need."""

    def __init__(self, match: DictionaryMatch) -> None:
        self._match = match
        self._iou: list[torch.Tensor] = []
        self._distance: list[torch.Tensor] = []
        self._norm: list[torch.Tensor] = []

    def add(
        self, a: Float[torch.Tensor, "batch d_sae_a"], b: Float[torch.Tensor, "batch d_sae_b"]
    ) -> None:
        b = b.to(a.device)
        index_a, index_b = self._match.index_a.to(a.device), self._match.index_b.to(a.device)
        paired_a = a[:, index_a]
        paired_b = b[:, index_b] * self._match.sign.to(a.device)
        both = ((paired_a != 0) & (paired_b != 0)).sum(-1)
        either = (a != 0).sum(-1) + (b != 0).sum(-1) - both
        self._iou.append(torch.where(either > 0, both / either.clamp_min(1), 1.0).cpu())
        distance = (paired_a - paired_b).square().sum(-1)
        # latents without partner are compared with nothing
        for codes, index in ((a, index_a), (b, index_b)):
            if len(index) < codes.shape[1]:
                distance = distance + codes.index_fill(1, index, 0).square().sum(-1)
        self._distance.append(distance.sqrt().cpu())
        self._norm.append((a.norm(dim=-1) + b.norm(dim=-1)).cpu() / 2)

    def agreement(self, rng: np.random.Generator) -> CodeAgreement | None:
        if not self._iou:
            return None
        iou = torch.cat(self._iou).double().numpy()
        distance = torch.cat(self._distance).double().numpy()
        norm = torch.cat(self._norm).double().numpy()
        return CodeAgreement(
            _estimate((iou,), _mean, rng),
            _estimate((distance, norm), _mean_ratio, rng),
            len(iou),
            np.histogram(iou, bins=_N_BINS, range=(0, 1))[0].tolist(),
        )


def _mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return values.mean(axis)


def _mean_ratio(distance: np.ndarray, norm: np.ndarray, axis: int = -1) -> np.ndarray:
    total = norm.mean(axis)
    return np.where(total > 0, distance.mean(axis) / np.where(total > 0, total, 1), 0.0)


def _estimate(data: tuple[np.ndarray, ...], statistic: Any, rng: np.random.Generator) -> Estimate:
    value = float(statistic(*data))
    n = len(data[0])
    if n < 2:
        return Estimate(value, None, None)
    interval = bootstrap(
        data,
        statistic,
        n_resamples=_N_RESAMPLES,
        batch=max(1, 2**24 // n),
        paired=True,
        vectorized=True,
        confidence_level=_CONFIDENCE,
        method="percentile",
        rng=rng,
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))
