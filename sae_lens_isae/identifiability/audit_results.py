"""What an audit measures of one SAE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sae_lens_isae.identifiability.dictionary import Coherence, Health
from sae_lens_isae.identifiability.distribution import Conditioning, Distribution
from sae_lens_isae.identifiability.supports import Diversity, Richness
from sae_lens_isae.identifiability.theory import Theorem
from sae_lens_isae.identifiability.verdict import Assumption, condition


@dataclass(frozen=True, kw_only=True)
class SelfConsistency:
    """One more decode-encode pass ('Latent Recovery'): how far does the code move?"""

    residual: Distribution
    """|F(z) - z| / |z|."""
    residual_in_support: Distribution
    """The same on the latents of z alone; what 'Latent Recovery' counts for TopK-like codes."""
    lipschitz: float | None
    """Corollary 3's constant |W_enc W_dec|_2 of the map F; None where the encoder is not an
    activation function after one linear map."""
    lower_bound: float | None
    """Theorem 2: if the dictionary were the true one, the code would be wrong by at least this
    share of its norm, on average. In-support residual over the Lipschitz constant."""


@dataclass(frozen=True, kw_only=True)
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
    """On the 2k largest pre-activations of each sample (Nelson et al. 2026, 'Measuring aRIP'); None
    for architectures without pre-activations or without k."""
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
        data["theorem"] |= theorem_dict(self.theorem, self.code_norm.max, self.diversity)
        return finite(data)


def theorem_dict(theorem: Theorem, largest_code: float, *diversities: Diversity) -> dict[str, Any]:
    """What the theorem says, as JSON data."""
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


def finite(data: Any) -> Any:
    """The same data with None for infinite numbers, which JSON lacks."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
