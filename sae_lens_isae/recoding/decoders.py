"""Is the decoder determined by the codes? Refitted decoders of 'Which Sparse Code?', appendix F."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int

from sae_lens_isae.errors import InputError
from sae_lens_isae.solvers import SparseCodes


@dataclass(frozen=True)
class RefittedDecoder:
    """Atoms for the latents that some code uses; the others have none."""

    latents: Int[torch.Tensor, " active"]
    atoms: Float[torch.Tensor, "active d_in"]

    def cosines_to(
        self, dictionary: Float[torch.Tensor, "d_sae d_in"]
    ) -> Float[torch.Tensor, " active"]:
        """Cosine of every refitted atom with the one it replaces."""
        return torch.nn.functional.cosine_similarity(
            self.atoms, dictionary[self.latents].to(self.atoms), dim=-1
        )

    def cosines_with(self, other: RefittedDecoder) -> Float[torch.Tensor, " shared"]:
        """Cosine of the atoms of the latents that both have."""
        mine = torch.isin(self.latents, other.latents)
        theirs = torch.isin(other.latents, self.latents)
        return torch.nn.functional.cosine_similarity(self.atoms[mine], other.atoms[theirs], dim=-1)


@torch.no_grad()
def refit_decoder(
    codes: SparseCodes, target: Float[torch.Tensor, "samples d_in"], ridge: float = 1e-6
) -> RefittedDecoder:
    """D* = argmin |X - Z D|^2 + ridge |D|^2 ('Which Sparse Code?', equation 3), in float64.

    Solved in the dual, Z^T (Z Z^T + ridge I)^-1 X, where fewer samples than latents are active.

    Args:
        target: X, without the decoder's offset.

    Raises:
        InputError: ridge is not positive.
    """
    if not ridge > 0:
        raise InputError(f"ridge must be > 0, got {ridge}")
    x = target.double()
    latents, place = codes.indices[codes.values != 0].unique(return_inverse=True)
    z = x.new_zeros(len(x), len(latents))
    row = (codes.values != 0).nonzero()[:, 0]
    z[row, place] = codes.values[codes.values != 0].double()
    dual = len(latents) > len(x)
    values, vectors = torch.linalg.eigh(z @ z.T if dual else z.T @ z)
    inverse = (vectors / (values.clamp_min(0) + ridge)) @ vectors.T
    return RefittedDecoder(latents, z.T @ (inverse @ x) if dual else inverse @ (z.T @ x))


def compare_decoders(
    codes: Mapping[str, SparseCodes],
    target: Float[torch.Tensor, "samples d_in"],
    dictionary: Float[torch.Tensor, "d_sae d_in"],
    ridge: float = 1e-6,
) -> pd.DataFrame:
    """Refit a decoder to every method's codes and compare it with the SAE's and with the others.

    A method with fewer codes than samples belongs to the first ones; what it is compared with is
    refitted to these, too.

    Returns:
        A row per `method`, with the mean `cosine` to the SAE's atoms, and a row per pair of it and
        an `other`, with that of the latents they share.
    """
    fits: dict[tuple[str, int], RefittedDecoder] = {}

    def fit(method: str, n: int) -> RefittedDecoder:
        if (method, n) not in fits:
            fits[method, n] = refit_decoder(codes[method].pick(slice(n)), target[:n], ridge)
        return fits[method, n]

    rows: list[dict[str, Any]] = []
    methods = list(codes)
    for i, method in enumerate(methods):
        n = len(codes[method].indices)
        alone = fit(method, n).cosines_to(dictionary)
        rows.append({"method": method, "other": None, "n_samples": n, "cosine": _mean(alone)})
        for other in methods[i + 1 :]:
            shared = min(n, len(codes[other].indices))
            both = fit(method, shared).cosines_with(fit(other, shared))
            rows.append(
                {"method": method, "other": other, "n_samples": shared, "cosine": _mean(both)}
            )
    return pd.DataFrame(rows)


def _mean(values: torch.Tensor) -> float | None:
    return values.mean().item() if len(values) else None
