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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability.activations import (
    Activations,
    ActivationSource,
    as_source,
)
from sae_lens_isae.identifiability.code_agreement import (
    CONFIDENCE,
    CodeAgreement,
    CodeComparison,
)
from sae_lens_isae.identifiability.comparable import check_comparable
from sae_lens_isae.identifiability.latents import LatentCounts, PairCounts, latent_table
from sae_lens_isae.identifiability.linear_model import LinearCode, LinearModel
from sae_lens_isae.identifiability.matching import DictionaryMatch, match_dictionaries
from sae_lens_isae.identifiability.ties import Directions, TieBreaker, directions
from sae_lens_isae.losses.arip import ARIPMeasurement
from sae_lens_isae.solvers import SparseCodes, omp

SCHEMA = "sae-lens-isae/pairwise/2"
"""Written into the JSON; the number grows when a field changes its meaning or goes away."""

_CODE_BYTES = 2**29
"""Dense codes of all SAEs for one batch take no more than this."""
_MAX_BATCH = 1024
_MAX_ORACLE_K = 256
"""OMP with more atoms than this takes hours, and its codes are no longer sparse."""


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
    same_sae: bool
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
    """Latents whose atom is zero: they can do nothing, and are not matched."""
    n_repeated: int
    """Latents whose atom has the direction of an earlier one, up to sign."""
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
    n_zero_rows: int
    """All-zero activations, which are no tokens' and are left out."""
    differences: list[str]
    """How the SAEs differ in what they are for."""

    def to_dict(self) -> dict[str, Any]:
        """JSON data, without the table of latents."""
        pairs: list[dict[str, Any]] = []
        for pair in self.pairs:
            row = {k: v for k, v in vars(pair).items() if k not in ("match", "sae", "oracle")}
            row["sae"] = pair.sae.to_dict()
            row["oracle"] = None if pair.oracle is None else pair.oracle.to_dict()
            pairs.append(row)
        return {
            "schema": SCHEMA,
            "activations": self.activations,
            "n_samples": self.n_samples,
            "n_zero_rows": self.n_zero_rows,
            "differences": self.differences,
            "confidence": CONFIDENCE,
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
    force: bool = False,
) -> PairwiseReport:
    """Compare all pairs of two or more SAEs on the same activations. Any SAELens SAEs will do.

    Codes are compared in the space of the activations, as if every atom had unit norm. Activations
    are read in batches, once, or twice where a dictionary repeats atoms; each SAE encodes on its
    own device.

    Args:
        saes: By name, or in a list (then named by their position).
        activations: At the SAEs' hook, not normalised.
        n_oracle_samples: The oracle works on this many of them; 0 leaves it out.
        oracle_k: Atoms per sample for the oracle; by default the SAE's k, or without one as many
            as its own encoder uses on that sample.
        found_cosine: A latent counts as found in another SAE from this cosine on, after its sign.
        seed: Of the bootstrap.
        force: Compare SAEs for different models or hooks all the same.

    Raises:
        InputError: Fewer than two SAEs, SAEs for different activations, d_in differs, activations
            are empty, misshapen or not finite, an SAE holds NaN, or a setting is out of range.
    """
    named = dict(saes) if isinstance(saes, Mapping) else {str(i): s for i, s in enumerate(saes)}
    if len(named) < 2:
        raise InputError(f"pairwise compares two or more SAEs, got {len(named)}")
    check_settings(n_oracle_samples, oracle_k, found_cosine)
    differences = check_comparable(named, force=force)
    models = {name: LinearModel(sae, name) for name, sae in named.items()}
    dimensions = {model.d_in for model in models.values()}
    if len(dimensions) > 1:
        raise InputError(f"the SAEs have different d_in: {sorted(dimensions)}")
    source = as_source(activations, dimensions.pop())
    if oracle_k is not None and oracle_k > min(m.d_sae for m in models.values()):
        raise InputError(f"oracle_k = {oracle_k} exceeds the latents of an SAE")
    runs = {name: _Run(name, model, oracle_k) for name, model in models.items()}
    pairs = [
        _Pair(runs[a], runs[b])
        for a, b in tqdm(
            list(itertools.combinations(runs, 2)),
            desc="Matching dictionaries",
            unit="pair",
            disable=len(models) < 3,
        )
    ]
    _break_ties(source, runs, [pair for pair in pairs if pair.tie_breaker.is_needed])
    n_samples = _stream(source, runs, pairs, n_oracle_samples)
    rng = np.random.default_rng(seed)
    return PairwiseReport(
        saes=[run.summary(n_oracle_samples) for run in runs.values()],
        pairs=[pair.result(rng) for pair in pairs],
        latents=latent_table(
            {name: run.counts for name, run in runs.items()},
            {(pair.a.name, pair.b.name): pair.latents for pair in pairs},
            {name: run.model.is_zero for name, run in runs.items()},
            found_cosine,
        ),
        n_samples=n_samples,
        activations=source.description,
        found_cosine=found_cosine,
        n_zero_rows=source.n_samples - n_samples,
        differences=differences,
    )


def check_settings(n_oracle_samples: int, oracle_k: int | None, found_cosine: float) -> None:
    """Refuse settings of `pairwise_identifiability` that are out of range.

    Raises:
        InputError: One is.
    """
    if n_oracle_samples < 0:
        raise InputError(f"oracle_samples must be >= 0, got {n_oracle_samples}")
    if oracle_k is not None and oracle_k < 1:
        raise InputError(f"oracle_k must be >= 1, got {oracle_k}; oracle_samples 0 leaves it out")
    if not 0 <= found_cosine <= 1:
        raise InputError(f"found must be a cosine between 0 and 1, got {found_cosine}")


def _batches(
    source: ActivationSource, runs: Mapping[str, _Run], description: str
) -> Iterator[Float[torch.Tensor, "batch d_in"]]:
    """The activations but all-zero ones, in batches whose dense codes fit in memory."""
    latents = sum(run.model.d_sae for run in runs.values())
    size = max(1, min(_MAX_BATCH, _CODE_BYTES // (4 * latents)))
    return source.non_zero_batches(size, description)


def _break_ties(source: ActivationSource, runs: dict[str, _Run], pairs: list[_Pair]) -> None:
    """A pass of its own: how codes agree is measured under a matching that is settled."""
    if not pairs:
        return
    some = {run.name: run for pair in pairs for run in (pair.a, pair.b)}
    for x in _batches(source, runs, "Matching repeated atoms"):
        codes = {name: run.model.encode(x).codes for name, run in some.items()}
        for pair in pairs:
            pair.tie_breaker.add(codes[pair.a.name], codes[pair.b.name])
    for pair in pairs:
        pair.settle()


def _stream(
    source: ActivationSource,
    runs: dict[str, _Run],
    pairs: list[_Pair],
    n_oracle_samples: int,
) -> int:
    """One pass over the activations: every SAE encodes a batch once, for all its pairs. Returns
    the number of activations that are not zero."""
    left = n_oracle_samples
    n_samples = 0
    for x in _batches(source, runs, "Comparing codes"):
        n_samples += len(x)
        codes = {name: run.encode(x) for name, run in runs.items()}
        for pair in pairs:
            pair.add(codes[pair.a.name].codes, codes[pair.b.name].codes)
        if left > 0:
            for name, run in runs.items():
                run.add_oracle(x[:left], codes[name])
            left -= len(x)
    if not n_samples:
        raise InputError(f"{source.description}: all {source.n_samples} activations are zero")
    return n_samples


class _Run:
    """One SAE on the stream of activations."""

    def __init__(self, name: str, model: LinearModel, oracle_k: int | None) -> None:
        self.name = name
        self.model = model
        self.counts = LatentCounts(model.d_sae)
        self._directions: dict[bool, Directions] = {}
        self.oracle_codes: list[SparseCodes] = []
        self._oracle_k = oracle_k
        self._no_oracle: str | None = None
        self._error = 0.0
        self._r_arip = 0.0
        self._n = 0
        self._n_supports = 0

    def directions(self, *, up_to_sign: bool) -> Directions:
        """Which atoms repeat."""
        if up_to_sign not in self._directions:
            self._directions[up_to_sign] = directions(self.model.atoms, up_to_sign=up_to_sign)
        return self._directions[up_to_sign]

    def encode(self, x: Float[torch.Tensor, "batch d_in"]) -> LinearCode:
        code = self.model.encode(x)
        x = x.to(self.model.device)
        self.counts.add(code.codes)
        error = (x - self.model.decode(code.codes, code.offset)).square().sum(-1)
        self._error += (error / x.square().sum(-1)).sum().item()
        self._n += len(x)
        # exact eigenvalues are costly and settle quickly
        missing = _MAX_BATCH - self._n_supports
        supports = self.model.proxy_supports(code, missing) if missing > 0 else None
        if supports is not None:
            measured = ARIPMeasurement(self.model.atoms, supports)
            self._r_arip += measured.r_arip().item() * len(supports)
            self._n_supports += len(supports)
        return code

    def add_oracle(self, x: Float[torch.Tensor, "batch d_in"], code: LinearCode) -> None:
        """Code by OMP on this dictionary, with as many atoms as the SAE uses."""
        if self._no_oracle is not None:
            return
        n = len(x)
        k: int | Int[torch.Tensor, " batch"] | None = self._oracle_k or self.model.k
        if k is None:
            k = (code.codes[:n] != 0).sum(-1).cpu()
            if k.max() > _MAX_ORACLE_K:
                self._no_oracle = f"none: {int(k.max())} active latents, give oracle_k"
                self.oracle_codes = []
                warnings.warn(
                    f"{self.name}: up to {int(k.max())} latents are active, too many for the "
                    f"oracle; give oracle_k (--oracle-k) to have one",
                    stacklevel=2,
                )
                return
        offset = code.offset[:n] if len(code.offset) > 1 else code.offset
        target = x.to(self.model.device) - offset
        self.oracle_codes.append(omp(target, self._distinct_atoms, k))

    @cached_property
    def _distinct_atoms(self) -> Float[torch.Tensor, "d_sae d_in"]:
        """The atoms with copies set to zero: which of them the oracle takes is a matter of the last
        bit."""
        first = self.directions(up_to_sign=True).first.to(self.model.device)
        if len(first) == self.model.d_sae:
            return self.model.atoms
        atoms = torch.zeros_like(self.model.atoms)
        atoms[first] = self.model.atoms[first]
        return atoms

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
            n_zero_atoms=int(self.model.is_zero.sum()),
            n_repeated=self.directions(up_to_sign=self.model.signed).n_repeated,
            oracle_k=oracle_k,
        )


class _Pair:
    """Two SAEs: their matching, and what the stream of activations says about it."""

    def __init__(self, a: _Run, b: _Run) -> None:
        self.a, self.b = a, b
        self._same = a.model.identity == b.model.identity
        # where codes have no signs, a latent and its opposite never fire for the same thing
        self._signed_codes = a.model.signed or b.model.signed
        self._up_to_sign = self._match(signed=False)
        self._by_cosine = self._match(signed=True)
        self.match = self._up_to_sign if self._signed_codes else self._by_cosine
        self.tie_breaker = self._tie_breaker(self.match, signed=not self._signed_codes)
        self._codes = CodeComparison(self.match)
        self.latents = PairCounts(self.match)
        there = [run.model.d_sae - int(run.model.is_zero.sum()) for run in (a, b)]
        self._n_unmatched = abs(there[0] - there[1])
        if a.model.d_sae != b.model.d_sae:
            warnings.warn(
                f"{a.name} and {b.name}: dictionaries of {a.model.d_sae} and {b.model.d_sae} "
                f"latents are matched on the smaller one; {self._n_unmatched} latents of the "
                "larger have no partner",
                stacklevel=2,
            )

    def settle(self) -> None:
        """Take the matching that the tie breaker chose; before any code is compared."""
        self.match = self.tie_breaker.resolve()
        self._codes = CodeComparison(self.match)
        self.latents = PairCounts(self.match)

    def add(
        self, a: Float[torch.Tensor, "batch d_sae_a"], b: Float[torch.Tensor, "batch d_sae_b"]
    ) -> None:
        """Compare a batch of codes."""
        self._codes.add(a, b)
        self.latents.add(a, b)

    def result(self, rng: np.random.Generator) -> PairIdentifiability:
        own = self._codes.agreement(rng)
        assert own is not None
        return PairIdentifiability(
            a=self.a.name,
            b=self.b.name,
            dcs=self._up_to_sign.dcs,
            dcs_gap=self._up_to_sign.gap,
            signed_mcc=self._by_cosine.dcs,
            sae=own,
            oracle=self._oracle(rng),
            n_unmatched=self._n_unmatched,
            same_sae=self._same,
            match=self.match,
        )

    def _oracle(self, rng: np.random.Generator) -> CodeAgreement | None:
        batches = list(zip(self.a.oracle_codes, self.b.oracle_codes, strict=False))
        match = self._up_to_sign
        # the oracle's codes have signs, and use other copies of an atom than the encoders
        breaker = self._tie_breaker(match, signed=False)
        if breaker.is_needed:
            for of_a, of_b in batches:
                breaker.add(of_a.to_dense(), of_b.to_dense())
            match = breaker.resolve()
        comparison = CodeComparison(match)
        for of_a, of_b in batches:
            comparison.add(of_a.to_dense(), of_b.to_dense())
        return comparison.agreement(rng)

    def _match(self, *, signed: bool) -> DictionaryMatch:
        if not self._same:
            return match_dictionaries(self.a.model.atoms, self.b.model.atoms, signed=signed)
        index = (~self.a.model.is_zero).nonzero()[:, 0].cpu()
        ones = torch.ones(len(index))
        return DictionaryMatch(index, index, ones, ones, 0.0)

    def _tie_breaker(self, match: DictionaryMatch, *, signed: bool) -> TieBreaker:
        a, b = self.a, self.b
        if self._same:
            of_a = of_b = Directions.all_different(a.model.d_sae)
        else:
            of_a, of_b = (run.directions(up_to_sign=not signed) for run in (a, b))
        return TieBreaker(match, a.model.atoms, b.model.atoms, of_a, of_b, signed=signed)
