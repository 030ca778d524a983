"""Theorem 3.6 of Nelson et al. 2026 (appendix A) as numbers: its condition and its bounds.

Everything is in units in which the activations, the decoder's bias subtracted, have norm 1, as the
paper normalises its inputs; so B = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

INPUT_NORM = 1.0
"""B of assumption A5."""

RIP_THRESHOLDS = {
    "1/3": 1 / 3,
    "sqrt(2) - 1": math.sqrt(2) - 1,
    "1/sqrt(2)": 1 / math.sqrt(2),
    "1": 1.0,
}
"""Bounds on delta_2k: 1/3 (what the review of the paper asks for), Candes 2008, Cai & Zhang 2014
(both for l1 recovery), and 1, without which supports are not even linearly independent (A1)."""


def separation(delta: float) -> float:
    """alpha(delta) = sqrt(1 - (2 delta / (1 + delta))^2): the sine between two observed supports
    is at least this (Lemma A.1). 0 from delta = 1 on."""
    if delta >= 1:
        return 0.0
    return math.sqrt(1 - (2 * delta / (1 + delta)) ** 2)


@dataclass(frozen=True)
class Theorem:
    """Theorem 3.6 with measured constants."""

    epsilon: float
    """Largest reconstruction error |x - x_hat| (A3)."""
    delta: float
    """Largest aRIP constant on a union of two observed supports (A1)."""
    zeta: float
    """Smallest singular value of k codes that share a support (A4)."""
    k: int
    """Largest number of active latents."""

    @property
    def alpha(self) -> float:
        """alpha(delta)."""
        return separation(self.delta)

    @property
    def largest_epsilon(self) -> float:
        """A3 asks for an error below zeta sqrt(1 - delta) alpha(delta) / (4 sqrt(k))."""
        return (
            self.zeta * math.sqrt(max(0.0, 1 - self.delta)) * self.alpha / (4 * math.sqrt(self.k))
        )

    @property
    def holds(self) -> bool:
        """Whether the condition of the theorem, A3, is met."""
        return self.epsilon < self.largest_epsilon

    @property
    def eta(self) -> float:
        """Largest sine between a support's span and its counterpart's (Lemma A.2)."""
        scale = self.zeta * math.sqrt(max(0.0, 1 - self.delta))
        return 2 * math.sqrt(self.k) * self.epsilon / scale if scale > 0 else math.inf

    @property
    def c1(self) -> float:
        """C_1(delta) = 1 + 2 / alpha(delta)."""
        return 1 + 2 / self.alpha if self.alpha > 0 else math.inf

    @property
    def proof_holds(self) -> bool:
        """Whether C_1 eta < sqrt((1 - delta) / 8).

        The proof's step 'pi is well defined' derives C_1 eta >= sqrt((1 - delta) / 8) from the
        contrary, and calls that a contradiction to A3. A3 alone gives eta < alpha / 2, which does
        not exclude it; this condition does, and the steps before it with it.
        """
        return self.c1 * self.eta < math.sqrt(max(0.0, 1 - self.delta) / 8)

    @property
    def dictionary_bound(self) -> float:
        """2 C_1(delta) eta >= |d_i - d'_pi(i)|."""
        return 2 * self.c1 * self.eta

    @property
    def dictionary_bound_is_vacuous(self) -> bool:
        """Two unit vectors are never further apart than sqrt(2), up to sign."""
        return self.dictionary_bound >= math.sqrt(2)

    @property
    def code_bound(self) -> float:
        """|z - Pi z'| is at most

            2 epsilon / sqrt(1 - delta) + 2 sqrt(k) C_1 eta (B + epsilon) / (1 - delta),

        infinite from delta = 1 on.
        """
        if self.delta >= 1:
            return math.inf
        spread = 2 * math.sqrt(self.k) * self.c1 * self.eta * (INPUT_NORM + self.epsilon)
        return 2 * self.epsilon / math.sqrt(1 - self.delta) + spread / (1 - self.delta)

    def code_bound_is_vacuous(self, largest_code: float) -> bool:
        """Two codes are never further apart than the sum of their norms."""
        return self.code_bound >= 2 * largest_code
