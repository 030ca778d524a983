"""What is measured of SAEs, and of pairs of them, on a stream of activations."""

from __future__ import annotations

import warnings
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int

from sae_lens_isae.contexts.examples import LatentExamples
from sae_lens_isae.identifiability.chance import CodesByChance, PairSizes
from sae_lens_isae.identifiability.code_agreement import CodeAgreement, CodeComparison
from sae_lens_isae.identifiability.latents import LatentCounts, PairCounts
from sae_lens_isae.identifiability.matching import DictionaryMatch, match_dictionaries
from sae_lens_isae.identifiability.pairwise_results import PairIdentifiability, SAESummary
from sae_lens_isae.identifiability.ties import Directions, TieBreaker, directions
from sae_lens_isae.inputs.activation_source import NumberedRows
from sae_lens_isae.inputs.linear_sae import LinearCode, LinearSAE
from sae_lens_isae.losses.arip import ARIPMeasurement
from sae_lens_isae.solvers import SparseCodes, omp

_MEASURED_SUPPORTS = 1024
"""Exact eigenvalues are costly and settle quickly."""
_MAX_ORACLE_K = 256
"""OMP with more atoms than this takes hours, and its codes are no longer sparse."""


class FirstRows:
    """The first activations of a stream, on the CPU."""

    def __init__(self, n: int) -> None:
        self._left = n
        self._rows: list[torch.Tensor] = []

    def add(self, x: Float[torch.Tensor, "batch d_in"]) -> None:
        if self._left > 0:
            self._rows.append(x[: self._left].cpu())
            self._left -= len(x)

    def rows(self) -> Float[torch.Tensor, "rows d_in"]:
        return torch.cat(self._rows)


class Run:
    """One SAE on the stream of activations."""

    def __init__(self, name: str, linear: LinearSAE, oracle_k: int | None) -> None:
        self.name = name
        self.linear = linear
        self.counts = LatentCounts(linear.d_sae)
        self.examples = LatentExamples(linear.d_sae)
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

    def encode(self, batch: NumberedRows) -> LinearCode:
        code = self.linear.encode(batch.activations)
        x = batch.activations.to(self.linear.device)
        self.counts.add(code.codes)
        self.examples.add(code.codes, batch.numbers)
        error = (x - self.linear.decode(code.codes, code.offset)).square().sum(-1)
        self._error += (error / x.square().sum(-1)).sum().item()
        self._n += len(x)
        missing = _MEASURED_SUPPORTS - self._n_supports
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
            identity=self.linear.identity,
            architecture=self.linear.cfg.architecture(),
            d_sae=self.linear.d_sae,
            l0=float(self.counts.active.sum()) / self._n,
            mse=self._error / self._n,
            r_arip=self._r_arip / self._n_supports if self._n_supports else None,
            n_dead=int((self.counts.active == 0).sum()),
            n_zero_atoms=int(self.linear.is_zero.sum()),
            n_repeated=self.directions(up_to_sign=self.linear.signed).n_repeated,
            oracle_k=oracle_k,
            neuronpedia_id=self.linear.cfg.metadata.neuronpedia_id,
        )


class Pair:
    """Two SAEs: their matching, and what the stream of activations says about it."""

    def __init__(self, a: Run, b: Run, chance_seed: int | None) -> None:
        self.a, self.b = a, b
        self._chance_seed = chance_seed
        self._same = a.linear.identity == b.linear.identity
        # where codes have no signs, a latent and its opposite never fire for the same thing
        self._signed_codes = a.linear.signed or b.linear.signed
        self._up_to_sign = self._match(signed=False)
        self._by_cosine = self._match(signed=True)
        self.match = self._up_to_sign if self._signed_codes else self._by_cosine
        self.tie_breaker = self._tie_breaker(self.match, signed=not self._signed_codes)
        self._compare_under(self.match)
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
        self._compare_under(self.match)

    def _compare_under(self, match: DictionaryMatch) -> None:
        self._codes = CodeComparison(match)
        self.latents = PairCounts(self.a.name, match)
        seed = self._chance_seed
        self.by_chance = None if seed is None else CodesByChance(match, seed)

    @property
    def sizes(self) -> PairSizes:
        return PairSizes(self.a.linear.d_sae, self.b.linear.d_sae, self._signed_codes)

    def add(
        self, a: Float[torch.Tensor, "batch d_sae_a"], b: Float[torch.Tensor, "batch d_sae_b"]
    ) -> None:
        """Compare a batch of codes."""
        self._codes.add(a, b)
        self.latents.add(a, b)
        if self.by_chance is not None:
            self.by_chance.add(a, b)

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
