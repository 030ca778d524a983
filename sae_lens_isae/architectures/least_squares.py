"""SAEs whose encoder chooses the latents while least squares sets their coefficients.

For every architecture NAME that rebuilds its input there is NAME_ls: the same weights and the same
supports, with the coefficients that rebuild x best (assumption A6 of Theorem 3.6, Nelson et al.
2026). Codes that cannot be negative stay so: of a coefficient that comes out negative the latent is
left out, and the others are solved again. TopK and AbsTopK may propose more latents than they have
in a code; the solution chooses among them.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, cast

import torch
from jaxtyping import Float
from sae_lens import SAE, AbsTopKSAE, SAEConfig, TopKSAE
from sae_lens.saes.abstopk_sae import AbsTopK
from torch import nn
from typing_extensions import Self, override

from sae_lens_isae.architectures.isae_config import check_candidates
from sae_lens_isae.architectures.isae_me import ISAEMESAE
from sae_lens_isae.ops.least_squares import pruned_least_squares
from sae_lens_isae.ops.sparse import dense_codes, to_dense
from sae_lens_isae.solvers.codes import SparseCodes, atom_norms, unit_atoms

SUFFIX = "_ls"


@torch.no_grad()
def solved_code(
    sae: SAE[Any],
    x: Float[torch.Tensor, "*batch d_in"],
    feature_acts: torch.Tensor,
    k: int | None = None,
) -> Float[torch.Tensor, "*batch d_sae"]:
    """The code with the support of `feature_acts` that rebuilds `x` best.

    Args:
        x: Activations as `sae.encode` takes them.
        feature_acts: What its encoder gives for them.
        k: So many of that support at most, see `pruned_least_squares`; by default all of it.
    """
    sae_in = sae.run_time_activation_norm_fn_in(sae.reshape_fn_in(x.to(sae.dtype)))
    acts = dense_codes(feature_acts)
    codes = SparseCodes.from_dense(acts.flatten(0, -2))
    norm = atom_norms(sae.W_dec)
    # the SAE's own coefficients may be those of atoms as they are
    unit = torch.ones_like(norm) if _rescales(sae) else torch.where(norm > 0, norm, 1.0)
    indices, values = pruned_least_squares(
        (sae_in - sae.b_dec).flatten(0, -2),
        unit_atoms(sae.W_dec),
        codes.indices,
        codes.values * unit[codes.indices],
        k=codes.indices.shape[1] if k is None else k,
        keep_sign=not isinstance(sae.activation_fn, AbsTopK),
    )
    solved = (values / unit[indices]).to(acts.dtype)
    return to_dense(indices, solved, codes.d_sae).view_as(acts)


def _rescales(sae: SAE[Any]) -> bool:
    return bool(getattr(sae.cfg, "rescale_acts_by_decoder_norm", False))


def n_candidates(cfg: Any) -> int:
    """How many latents are proposed, by a config with `k`, `candidates` and `d_sae`."""
    return min(round(cfg.candidates * cfg.k), cfg.d_sae)


def proposing(activation_fn: Any, n: int) -> Any:
    """TopK or AbsTopK with another number of latents."""
    other = copy.copy(activation_fn)
    other.k = n
    return other


class LeastSquaresCodes(SAE[Any]):
    """Solves for the codes of the SAELens class that stands behind it among the bases."""

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        feature_acts = super(LeastSquaresCodes, self._chooser()).encode(x)
        return self.hook_sae_acts_post(solved_code(self, x, feature_acts))

    def _chooser(self) -> Self:
        """This SAE without hooks on its codes: they belong to those that leave, so that a latent
        which a hook switches off stays off."""
        chooser = copy.copy(self)
        # found before the module of that name, which the copy shares
        vars(chooser)["hook_sae_acts_post"] = nn.Identity()
        return chooser


class CandidateLeastSquaresCodes(LeastSquaresCodes):
    """The same for TopK and AbsTopK, which may propose more latents than stay."""

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        chooser = self._chooser()
        vars(chooser)["activation_fn"] = proposing(self.activation_fn, n_candidates(self.cfg))
        proposed = super(LeastSquaresCodes, chooser).encode(x)
        return self.hook_sae_acts_post(solved_code(self, x, proposed, int(self.cfg.k)))


@dataclasses.dataclass(kw_only=True)
class CandidatesConfig(SAEConfig):
    """The field of an SAE that may propose more latents than stay."""

    candidates: float = 1.0
    """The `candidates` * k latents that are largest in the encoder's code are solved for; the k
    with the largest coefficients stay, and are solved for again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_candidates(self.candidates)


class MultistepLeastSquaresCodes(LeastSquaresCodes, ISAEMESAE):
    """The same for iSAE-ME, which says itself what it ranks."""

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.encode_with_hidden_pre(x)[0]

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        feature_acts, hidden_pre = ISAEMESAE.encode_with_hidden_pre(self._chooser(), x)
        return self.hook_sae_acts_post(solved_code(self, x, feature_acts)), hidden_pre


def least_squares_class(
    name: str, sae_class: type[SAE[Any]], config_class: type[SAEConfig]
) -> tuple[type[SAE[Any]], type[SAEConfig]]:
    """The form with solved codes of an inference class and its config.

    Args:
        name: Of the new architecture.
    """

    def architecture(cls: type[SAEConfig]) -> str:  # noqa: ARG001
        return name

    proposes = sae_class in (TopKSAE, AbsTopKSAE)
    config = dataclasses.make_dataclass(
        f"{config_class.__name__}LS",
        [],
        bases=(CandidatesConfig, config_class) if proposes else (config_class,),
        namespace={"architecture": classmethod(architecture), "__module__": __name__},
    )
    solves = LeastSquaresCodes
    if proposes:
        solves = CandidateLeastSquaresCodes
    elif sae_class is ISAEMESAE:
        solves = MultistepLeastSquaresCodes
    solved = type(f"{sae_class.__name__}LS", (solves, sae_class), {"__module__": __name__})
    return cast("type[SAE[Any]]", solved), cast("type[SAEConfig]", config)
