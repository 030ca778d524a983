"""The multistep encoder (paper 1, section 3.4, after Gregor & LeCun 2010)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float

Codes = Float[torch.Tensor, "... d_sae"]


def multistep_encode(
    linear_pre: Codes,
    apply_step_matrix: Callable[[Codes], Codes],
    activation_fn: Callable[[Codes], Codes],
    n_steps: int,
) -> tuple[Codes, Codes]:
    """Run z(i) = activation(z(i-1) S + (x - b) W_enc), z(0) = 0, for `n_steps` steps (equation 10).

    Args:
        linear_pre: (x - b) W_enc.
        apply_step_matrix: z -> z S in the row-vector convention.
        activation_fn: TopK or AbsTopK.
        n_steps: T >= 1; one step is the linear encoder.

    Returns:
        The codes z(T), and what the activation saw in the last step.
    """
    hidden_pre = linear_pre
    feature_acts = activation_fn(hidden_pre)
    for _ in range(n_steps - 1):
        hidden_pre = apply_step_matrix(feature_acts) + linear_pre
        feature_acts = activation_fn(hidden_pre)
    return feature_acts, hidden_pre
