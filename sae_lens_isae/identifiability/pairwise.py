"""Would another training run have found the same dictionary and the same codes?

The metrics of Nelson et al. 2026, section 4, for all pairs of two or more SAEs: dictionary cosine
similarity (DCS), intersection over union (IoU) of the supports and l2 error of the codes. The
dictionaries are matched up to permutation and sign first. Codes come from the SAEs' own encoders,
and from orthogonal matching pursuit on their dictionaries as an oracle: where the oracle agrees
better, the encoder is what limits agreement.

Where neither SAE's codes have signs, latents are matched up to permutation alone. Otherwise an SAE
with one latent for each sign of a concept would be matched to the wrong one half of the time. The
oracle's codes always have signs.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int

from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability.code_agreement import CodeAgreement, CodeComparison
from sae_lens_isae.identifiability.latents import LatentCounts, PairCounts, latent_tables
from sae_lens_isae.identifiability.matching import DictionaryMatch, match_dictionaries
from sae_lens_isae.identifiability.pairwise_report import PairwiseReport
from sae_lens_isae.identifiability.pairwise_results import PairIdentifiability, SAESummary
from sae_lens_isae.identifiability.ties import Directions, TieBreaker, directions
from sae_lens_isae.inputs.activation_source import ActivationSource
from sae_lens_isae.inputs.activations import AnyActivations, as_source
from sae_lens_isae.inputs.comparable import check_comparable, what_seeds_varied
from sae_lens_isae.inputs.linear_sae import LinearCode, LinearSAE
from sae_lens_isae.inputs.saes import AnySAEs, named_saes
from sae_lens_isae.losses.arip import ARIPMeasurement
from sae_lens_isae.progress import progress_bar, progress_shown
from sae_lens_isae.solvers import SparseCodes, omp

_CODE_BYTES = 2**29
"""Dense codes of all SAEs for one batch take no more than this."""
_MAX_BATCH = 1024
_MAX_ORACLE_K = 256
"""OMP with more atoms than this takes hours, and its codes are no longer sparse."""


@torch.no_grad()
def pairwise_identifiability(
    saes: AnySAEs,
    activations: AnyActivations = None,
    *,
    n_oracle_samples: int = 1024,
    oracle_k: int | None = None,
    found_cosine: float = 0.9,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> PairwiseReport:
    """Compare all pairs of two or more SAEs on the same activations. Any SAELens SAEs will do.

    Codes are compared in the space of the activations, as if every atom had unit norm. Activations
    are read in batches, once, or twice where a dictionary repeats atoms; each SAE encodes on its
    own device.

    Args:
        saes: Loaded, or by their names (folders, `release/sae_id`), in a list or a mapping.
        activations: At the SAEs' hook, not normalised: a tensor, a file, a generator
            (`open_activations`), or None to run the model that the SAEs' metadata name.
        n_oracle_samples: The oracle works on this many of them; 0 leaves it out.
        oracle_k: Atoms per sample for the oracle; by default the SAE's k, or without one as many
            as its own encoder uses on that sample.
        found_cosine: A latent counts as found in another SAE from this cosine on, after its sign.
        seed: Of the bootstrap.
        force: Compare SAEs even if they are for different models or hooks.
        progress: Show progress bars.

    Raises:
        InputError: Fewer than two SAEs, SAEs for different activations, d_in differs, activations
            are empty, misshapen or not finite, an SAE holds NaN, or a setting is out of range.

    Examples:
        >>> import torch
        >>> from sae_lens import TopKSAE, TopKSAEConfig
        >>> import sae_lens_isae
        >>> _ = torch.manual_seed(0)
        >>> saes = {name: TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=2)) for name in "ab"}
        >>> report = sae_lens_isae.pairwise_identifiability(
        ...     saes, torch.randn(100, 8), n_oracle_samples=0, progress=False
        ... )
        >>> report.pairs[0].dcs < 0.9  # two dictionaries at random
        True
        >>> list(report.partners.columns[:4])
        ['sae', 'latent', 'other', 'partner']
    """
    check_settings(n_oracle_samples, oracle_k, found_cosine)
    with progress_shown(progress):
        named = named_saes(saes)
        if len(named) < 2:
            raise InputError(f"pairwise compares two or more SAEs, got {len(named)}")
        differences = [*check_comparable(named, force=force), *what_seeds_varied(named)]
        linear_saes = {name: LinearSAE(sae, name) for name, sae in named.items()}
        dimensions = {linear.d_in for linear in linear_saes.values()}
        if len(dimensions) > 1:
            raise InputError(f"the SAEs have different d_in: {sorted(dimensions)}")
        source = as_source(activations, named)
        if oracle_k is not None and oracle_k > min(m.d_sae for m in linear_saes.values()):
            raise InputError(f"oracle_k = {oracle_k} exceeds the latents of an SAE")
        runs = {name: _Run(name, linear, oracle_k) for name, linear in linear_saes.items()}
        pairs = _matched_pairs(runs)
        _break_ties(source, runs, [pair for pair in pairs if pair.tie_breaker.is_needed])
        n_samples = _stream(source, runs, pairs, n_oracle_samples)
    rng = np.random.default_rng(seed)
    tables = latent_tables(
        {name: run.counts for name, run in runs.items()},
        {(pair.a.name, pair.b.name): pair.latents for pair in pairs},
        {name: run.linear.is_zero for name, run in runs.items()},
        found_cosine,
    )
    return PairwiseReport(
        saes=[run.summary(n_oracle_samples) for run in runs.values()],
        pairs=[pair.result(rng) for pair in pairs],
        latents=tables.latents,
        partners=tables.partners,
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


def _matched_pairs(runs: Mapping[str, _Run]) -> list[_Pair]:
    combinations = list(itertools.combinations(runs.values(), 2))
    bar = progress_bar(
        combinations, desc="Matching dictionaries", unit="pair", disable=len(runs) < 3
    )
    return [_Pair(a, b) for a, b in bar]


def _batches(
    source: ActivationSource, runs: Mapping[str, _Run], description: str
) -> Iterator[Float[torch.Tensor, "batch d_in"]]:
    """The activations but all-zero ones, in batches whose dense codes fit in memory."""
    latents = sum(run.linear.d_sae for run in runs.values())
    size = max(1, min(_MAX_BATCH, _CODE_BYTES // (4 * latents)))
    return source.non_zero_batches(size, description)


def _break_ties(source: ActivationSource, runs: dict[str, _Run], pairs: list[_Pair]) -> None:
    """A separate pass: agreement is measured under the matching that comes out of it."""
    if not pairs:
        return
    some = {run.name: run for pair in pairs for run in (pair.a, pair.b)}
    for x in _batches(source, runs, "Matching repeated atoms"):
        codes = {name: run.linear.encode(x).codes for name, run in some.items()}
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
    return n_samples


class _Run:
    """One SAE on the stream of activations."""

    def __init__(self, name: str, linear: LinearSAE, oracle_k: int | None) -> None:
        self.name = name
        self.linear = linear
        self.counts = LatentCounts(linear.d_sae)
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
            self._directions[up_to_sign] = directions(self.linear.atoms, up_to_sign=up_to_sign)
        return self._directions[up_to_sign]

    def encode(self, x: Float[torch.Tensor, "batch d_in"]) -> LinearCode:
        code = self.linear.encode(x)
        x = x.to(self.linear.device)
        self.counts.add(code.codes)
        error = (x - self.linear.decode(code.codes, code.offset)).square().sum(-1)
        self._error += (error / x.square().sum(-1)).sum().item()
        self._n += len(x)
        # exact eigenvalues are costly and settle quickly
        missing = _MAX_BATCH - self._n_supports
        supports = self.linear.proxy_supports(code, missing) if missing > 0 else None
        if supports is not None:
            measured = ARIPMeasurement(self.linear.atoms, supports)
            self._r_arip += measured.r_arip().item() * len(supports)
            self._n_supports += len(supports)
        return code

    def add_oracle(self, x: Float[torch.Tensor, "batch d_in"], code: LinearCode) -> None:
        """Code by OMP on this dictionary, with as many atoms as the SAE uses."""
        if self._no_oracle is not None:
            return
        n = len(x)
        k: int | Int[torch.Tensor, " batch"] | None = self._oracle_k or self.linear.k
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
        target = x.to(self.linear.device) - offset
        self.oracle_codes.append(omp(target, self._distinct_atoms, k))

    @cached_property
    def _distinct_atoms(self) -> Float[torch.Tensor, "d_sae d_in"]:
        """The atoms with copies set to zero: which of them the oracle takes is a matter of the last
        bit."""
        first = self.directions(up_to_sign=True).first.to(self.linear.device)
        if len(first) == self.linear.d_sae:
            return self.linear.atoms
        atoms = torch.zeros_like(self.linear.atoms)
        atoms[first] = self.linear.atoms[first]
        return atoms

    def summary(self, n_oracle_samples: int) -> SAESummary:
        oracle_k = self._no_oracle
        if n_oracle_samples > 0 and oracle_k is None:
            k = self._oracle_k or self.linear.k
            oracle_k = "as many as its encoder" if k is None else str(k)
        return SAESummary(
            name=self.name,
            architecture=self.linear.cfg.architecture(),
            d_sae=self.linear.d_sae,
            l0=float(self.counts.active.sum()) / self._n,
            mse=self._error / self._n,
            r_arip=self._r_arip / self._n_supports if self._n_supports else None,
            n_dead=int((self.counts.active == 0).sum()),
            n_zero_atoms=int(self.linear.is_zero.sum()),
            n_repeated=self.directions(up_to_sign=self.linear.signed).n_repeated,
            oracle_k=oracle_k,
        )


class _Pair:
    """Two SAEs: their matching, and what the stream of activations says about it."""

    def __init__(self, a: _Run, b: _Run) -> None:
        self.a, self.b = a, b
        self._same = a.linear.identity == b.linear.identity
        # where codes have no signs, a latent and its opposite never fire for the same thing
        self._signed_codes = a.linear.signed or b.linear.signed
        self._up_to_sign = self._match(signed=False)
        self._by_cosine = self._match(signed=True)
        self.match = self._up_to_sign if self._signed_codes else self._by_cosine
        self.tie_breaker = self._tie_breaker(self.match, signed=not self._signed_codes)
        self._codes = CodeComparison(self.match)
        self.latents = PairCounts(self.a.name, self.match)
        there = [run.linear.d_sae - int(run.linear.is_zero.sum()) for run in (a, b)]
        self._n_unmatched = abs(there[0] - there[1])
        if a.linear.d_sae != b.linear.d_sae:
            warnings.warn(
                f"{a.name} and {b.name}: dictionaries of {a.linear.d_sae} and {b.linear.d_sae} "
                f"latents are matched on the smaller one; {self._n_unmatched} latents of the "
                "larger have no partner",
                stacklevel=2,
            )

    def settle(self) -> None:
        """Take the matching that the tie breaker chose; before any code is compared."""
        self.match = self.tie_breaker.resolve()
        self._codes = CodeComparison(self.match)
        self.latents = PairCounts(self.a.name, self.match)

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
            return match_dictionaries(self.a.linear.atoms, self.b.linear.atoms, signed=signed)
        index = (~self.a.linear.is_zero).nonzero()[:, 0].cpu()
        ones = torch.ones(len(index))
        return DictionaryMatch(index, index, ones, ones, 0.0)

    def _tie_breaker(self, match: DictionaryMatch, *, signed: bool) -> TieBreaker:
        a, b = self.a, self.b
        if self._same:
            of_a = of_b = Directions.all_different(a.linear.d_sae)
        else:
            of_a, of_b = (run.directions(up_to_sign=not signed) for run in (a, b))
        return TieBreaker(match, a.linear.atoms, b.linear.atoms, of_a, of_b, signed=signed)
