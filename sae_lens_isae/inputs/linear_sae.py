"""Any SAELens SAE as the linear model x = D z + b + error, in the space of the activations.

What SAEs do on top of equation (1) of Nelson et al. 2026 is taken out here, so that codes of
different SAEs compare: atoms have unit norm, and run-time normalisation is undone in the code
instead of being kept between `encode` and `decode`. Stock SAELens keeps it there: a second `decode`
fails, encoding a second batch before decoding the first is silently wrong, and a zero vector gives
NaN.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    GatedSAE,
    GatedTrainingSAE,
    MatchingPursuitSAE,
    MatchingPursuitTrainingSAE,
    Transcoder,
)
from sae_lens.saes.abstopk_sae import AbsTopK
from sae_lens.saes.temporal_sae import TemporalSAE

from sae_lens_isae.architectures.isae_me import ISAEMESAE, ISAEMETrainingSAE
from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.identity import sae_identity
from sae_lens_isae.ops.selection import select_largest
from sae_lens_isae.ops.sparse import dense_codes
from sae_lens_isae.solvers.codes import atom_norms, unit_atoms


@dataclass(frozen=True)
class LinearCode:
    """x is about `codes @ atoms + offset`."""

    codes: Float[torch.Tensor, "batch d_sae"]
    """Coefficients of the unit-norm atoms."""
    offset: Float[torch.Tensor, "#batch d_in"]
    """What the decoder adds to every reconstruction: its bias, or bias and mean, in units of x."""
    hidden_pre: Float[torch.Tensor, "batch d_sae"] | None
    """What the last activation function ranks, None where the architecture has no such thing."""


class LinearSAE:
    """Stateless encoding and decoding with a SAELens SAE. The SAE itself is not changed.

    Args:
        name: Of the SAE, for messages; by default its architecture.

    Raises:
        InputError: The architecture is not of the form x = D z + b for single activations, or a
            weight is not finite.
    """

    def __init__(self, sae: SAE[Any], name: str | None = None) -> None:
        architecture = sae.cfg.architecture()
        self.name = name or f"{architecture} SAE"
        _check_form(sae, self.name)
        for parameter, weight in sae.named_parameters():
            # an infinite threshold switches a latent off, which is no defect
            bad = weight.isnan() if parameter in _THRESHOLDS else ~weight.float().isfinite()
            if bad.any():
                raise InputError(
                    f"{self.name}: {parameter} holds NaN or Inf in float32; the SAE is damaged, or "
                    "its training diverged"
                )
        weights = sae.W_dec.detach().float()
        self.normalization: str = sae.cfg.normalize_activations
        if self.normalization not in ("none", "constant_norm_rescale", "layer_norm"):
            warnings.warn(
                f"normalize_activations={self.normalization!r} was not folded into the weights of "
                "this SAE; activations go in as they are, as stock SAELens does",
                stacklevel=2,
            )
        self.cfg = sae.cfg
        self.device = sae.device
        self.d_in: int = sae.cfg.d_in
        self.d_sae: int = sae.cfg.d_sae
        # shares the parameters; only the two normalisation functions are its own
        self._sae = copy.copy(sae)
        self._sae.run_time_activation_norm_fn_in = _unchanged
        self._sae.run_time_activation_norm_fn_out = _unchanged
        if sae.hook_z_reshaping_mode:
            self._sae.turn_off_forward_pass_hook_z_reshaping()
        self.atoms: Float[torch.Tensor, "d_sae d_in"] = unit_atoms(weights)
        self.atom_norm: Float[torch.Tensor, " d_sae"] = atom_norms(weights)
        if not self.atom_norm.isfinite().all():
            raise InputError(f"{self.name}: an atom of W_dec is too long for float32")

    @cached_property
    def identity(self) -> str:
        """See `identity.sae_identity`."""
        return sae_identity(self._sae)

    @property
    def is_zero(self) -> Bool[torch.Tensor, " d_sae"]:
        """Latents whose atom is zero: they can do nothing."""
        return self.atom_norm == 0

    @property
    def rescales(self) -> bool:
        """Whether the SAE's own codes are in units of unit-norm atoms already."""
        return bool(getattr(self.cfg, "rescale_acts_by_decoder_norm", False))

    @cached_property
    def frame_operator(self) -> Float[torch.Tensor, "d_in d_in"]:
        """D D^T of the unit-norm atoms, in float64; its eigenvalues are the Gram matrix's."""
        return (self.atoms.T @ self.atoms).double()

    @torch.no_grad()
    def proxy_supports(
        self, code: LinearCode, n_samples: int
    ) -> Int[torch.Tensor, "samples size"] | None:
        """The 2k largest pre-activations of the first samples (Nelson et al. 2026, 'Measuring
        aRIP'); None without pre-activations or k, or where 2k exceeds the latents."""
        if code.hidden_pre is None or self.k is None or 2 * self.k > self.d_sae:
            return None
        hidden_pre = code.hidden_pre[:n_samples]
        return select_largest(hidden_pre, 2 * self.k, self.signed).indices

    @property
    def signed(self) -> bool:
        """Whether latents are ranked by magnitude."""
        return isinstance(self._sae.activation_fn, AbsTopK)

    @property
    def k(self) -> int | None:
        """The k of a TopK-like architecture."""
        k = getattr(self.cfg, "k", None)
        return None if k is None else round(k)

    @torch.no_grad()
    def encode(self, x: Float[torch.Tensor, "batch d_in"]) -> LinearCode:
        """Encode activations as they come from the model; a zero vector gives a finite code."""
        x = x.to(self.device).float()
        centre, scale_in, scale = self._normalization(x)
        codes, hidden_pre = self._encode(((x - centre) / scale_in).to(self._sae.dtype))
        if not self.rescales:
            codes = codes * self.atom_norm
        offset = self._sae.b_dec.float() * scale + centre
        return LinearCode(codes * scale, offset, hidden_pre)

    def decode(
        self, codes: Float[torch.Tensor, "batch d_sae"], offset: Float[torch.Tensor, "#batch d_in"]
    ) -> Float[torch.Tensor, "batch d_in"]:
        """Rebuild activations from codes, which may have been changed."""
        return codes @ self.atoms + offset

    def encoder_weights(self) -> Float[torch.Tensor, "d_in d_sae"] | None:
        """W with codes = activation_fn(W (x - b) + bias) in units of unit-norm atoms; None for an
        architecture with another encoder."""
        if isinstance(self._sae, _OTHER_ENCODERS):
            return None
        return self._sae.W_enc.detach().float() * self.atom_norm

    def _encode(
        self, x: Float[torch.Tensor, "batch d_in"]
    ) -> tuple[Float[torch.Tensor, "batch d_sae"], Float[torch.Tensor, "batch d_sae"] | None]:
        if isinstance(self._sae, _WITHOUT_PRE_ACTIVATIONS):
            return dense_codes(self._sae.encode(x)).float(), None
        # training SAEs and isae_me say themselves what they rank, the others show it to their hook
        encode_all = getattr(self._sae, "encode_with_hidden_pre", None)
        if encode_all is not None:
            codes, hidden_pre = encode_all(x)
            return dense_codes(codes).float(), hidden_pre.float()
        seen: list[torch.Tensor] = []

        def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
            seen.append(output)

        handle = self._sae.hook_sae_acts_pre.register_forward_hook(keep)
        try:
            codes = dense_codes(self._sae.encode(x)).float()
        finally:
            handle.remove()
        if not seen:
            return codes, None
        hidden_pre = seen[-1].float()
        return codes, hidden_pre * self.atom_norm if self.rescales else hidden_pre

    def _normalization(
        self, x: Float[torch.Tensor, "batch d_in"]
    ) -> tuple[
        Float[torch.Tensor, "batch 1"],
        Float[torch.Tensor, "batch 1"],
        Float[torch.Tensor, "batch 1"],
    ]:
        """Centre, and scale on the way in and out, by which SAELens normalises at run time; 0, 1
        and 1 if it does not."""
        zero, one = x.new_zeros(len(x), 1), x.new_ones(len(x), 1)
        if self.normalization == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / self.d_in**0.5
            scale = torch.where(scale > 0, scale, 1.0)
            return zero, scale, scale
        if self.normalization == "layer_norm":
            centre = x.mean(dim=-1, keepdim=True)
            scale = (x - centre).std(dim=-1, keepdim=True)
            return centre, scale + _LAYER_NORM_EPSILON, scale
        return zero, one, one


_WITHOUT_PRE_ACTIVATIONS = (MatchingPursuitSAE, MatchingPursuitTrainingSAE)
_OTHER_ENCODERS = (
    ISAEMESAE,
    ISAEMETrainingSAE,
    GatedSAE,
    GatedTrainingSAE,
    *_WITHOUT_PRE_ACTIVATIONS,
)
_THRESHOLDS = ("threshold", "log_threshold")
_LAYER_NORM_EPSILON = 1e-5


def _check_form(sae: SAE[Any], name: str) -> None:
    """Refuse what is not x = D z + b for single activations."""
    architecture = sae.cfg.architecture()
    if isinstance(sae, BatchTopKTrainingSAE):
        raise InputError(
            f"{name}: the codes of a {architecture!r} training SAE depend on the other activations "
            "of the batch; save it with save_inference_model and load that (SAELens makes it a "
            "JumpReLU SAE)"
        )
    d_out = getattr(sae.cfg, "d_out", sae.cfg.d_in)
    if d_out != sae.cfg.d_in or isinstance(sae, Transcoder):
        raise InputError(f"{name}: architecture {architecture!r} does not rebuild its input")
    if isinstance(sae, TemporalSAE):
        raise InputError(f"{name}: a temporal SAE encodes sequences, not single activations")


def _unchanged(x: torch.Tensor) -> torch.Tensor:
    return x
