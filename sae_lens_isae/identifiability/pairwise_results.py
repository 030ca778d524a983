"""What is measured of two SAEs, and of each of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from sae_lens_isae.identifiability.code_agreement import CodeAgreement
from sae_lens_isae.identifiability.matching import DictionaryMatch


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class SAESummary:
    """What one SAE does on the activations."""

    name: str
    identity: str
    """See `inputs.identity.sae_identity`."""
    architecture: str
    d_sae: int
    l0: float
    """Mean number of active latents."""
    mse: float
    """Mean |x - x_hat|^2 / |x|^2."""
    r_arip: float | None
    """Mean R_aRIP over the 2k largest pre-activations of each sample (the R_S column of Nelson et
    al. 2026); None without pre-activations or where 2k exceeds the latents."""
    n_dead: int
    """Latents that no sample activates."""
    n_zero_atoms: int
    """Latents whose atom is zero: they can do nothing, and are not matched."""
    n_repeated: int
    """Latents whose atom has the direction of an earlier one, up to sign."""
    oracle_k: str | None
    """Atoms per sample that the oracle takes, or why there is none."""
    neuronpedia_id: str | None = None
    """Under which Neuronpedia shows the SAE, if it does."""
