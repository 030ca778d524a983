"""iSAE-ME: the multistep encoder with a learned step matrix S (Nelson et al. 2026, section 3.4).

S acts on the codes as they leave the encoder. With unit-norm atoms
(`rescale_acts_by_decoder_norm=True`) these do not depend on the decoder's norms, and the recursion
is positively homogeneous, so folding the norms or an activation scale into the weights is exact and
leaves S alone. (Were S to act on codes before the norms n, folding would be diag(1/n) S diag(n).)
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from sae_lens import SAEConfig
from sae_lens.saes.sae import TrainStepInput
from torch import nn
from typing_extensions import override

from sae_lens_isae.architectures.isae import ISAESAE, ISAETrainingSAE
from sae_lens_isae.architectures.isae_config import (
    ISAESAEConfig,
    ISAETrainingSAEConfig,
    check_candidates,
)
from sae_lens_isae.errors import InputError
from sae_lens_isae.ops.compiling import not_compiled
from sae_lens_isae.ops.multistep import EncodedCodes, encode_codes, multistep_encode
from sae_lens_isae.ops.multistep_tied import encode_codes_tied
from sae_lens_isae.ops.optimizer import forget_moments
from sae_lens_isae.ops.selection import select_largest

StepMatrix = Literal["full", "tied"]

_STEP_MATRICES = ("full", "tied")


def _check_multistep(encoder_steps: int, step_matrix: str, candidates: float | None) -> None:
    if encoder_steps < 1 or encoder_steps != int(encoder_steps):
        raise InputError(f"encoder_steps (T) must be an integer >= 1, got {encoder_steps}")
    if step_matrix not in _STEP_MATRICES:
        raise InputError(f"step_matrix must be one of {list(_STEP_MATRICES)}, got {step_matrix!r}")
    if candidates is not None:
        check_candidates(candidates)
        if step_matrix != "tied":
            raise InputError("candidates needs step_matrix='tied'")


@dataclass
class ISAEMESAEConfig(ISAESAEConfig):
    """Inference config of iSAE-ME."""

    encoder_steps: int = 5
    """T, the number of encoder steps."""
    step_matrix: StepMatrix = "tied"
    """'tied': S = I - W_dec W_enc, no parameters; 'full': a learned S with d_sae^2 entries."""
    candidates: float | None = None
    """The steps after the first choose among the `candidates` * k latents that are largest in it;
    None: among all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_multistep(self.encoder_steps, self.step_matrix, self.candidates)

    @override
    @classmethod
    def architecture(cls) -> str:
        return "isae_me"


class ISAEMESAE(ISAESAE):
    """Inference SAE with the multistep encoder; the decoder is the stock one."""

    cfg: ISAEMESAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    S: nn.Parameter

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        _initialize_step_matrix(self)

    @override
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.encode_with_hidden_pre(x)[0]

    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The code, and what the last AbsTopK chose from: u(T)."""
        return _encode(self, x, self.cfg.encoder_steps)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        _check_step_matrix(self, state_dict)


@dataclass
class ISAEMETrainingSAEConfig(ISAETrainingSAEConfig):
    """Train iSAE-ME: the recipe of `isae` with the multistep encoder."""

    encoder_steps: int = 5
    """T, the number of encoder steps; the paper uses 5 and finds 3 to 10 alike. Where many atoms
    are near each other, 10 can lose latents or let codes grow without bound."""
    step_matrix: StepMatrix = "tied"
    """'tied': S = I - W_dec W_enc, which is what S is where it solves the sparse coding problem
    (Gregor & LeCun 2010), no parameters; 'full': the paper's learned S with d_sae^2 entries."""
    candidates: float | None = None
    """The steps after the first choose among the `candidates` * k latents that are largest in it:
    at 1 the linear encoder alone decides on the support, None lets each step choose among all.
    Needs the tied S."""
    encoder_warm_up_steps: int = 0
    """Training steps with a one-step encoder before S joins in; 0 is the paper's recipe. Helps the
    full S, which starts at zero, find latents on data without clusters."""

    def __post_init__(self) -> None:
        _check_multistep(self.encoder_steps, self.step_matrix, self.candidates)
        if self.encoder_warm_up_steps < 0:
            raise InputError(
                f"encoder_warm_up_steps must be >= 0, got {self.encoder_warm_up_steps}"
            )
        super().__post_init__()

    @override
    @classmethod
    def architecture(cls) -> str:
        return "isae_me"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return ISAEMESAEConfig


class ISAEMETrainingSAE(ISAETrainingSAE):
    """Training SAE with the multistep encoder. S starts at zero: the first codes are one-step."""

    cfg: ISAEMETrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    S: nn.Parameter

    def __init__(self, cfg: ISAEMETrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self._encoder_steps = cfg.encoder_steps

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        _initialize_step_matrix(self)

    @override
    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _encode(self, x, self._encoder_steps)

    @override
    def encode_codes(
        self,
        centred: Float[torch.Tensor, "batch d_in"],
        dictionary: Float[torch.Tensor, "d_sae d_in"],
        bias: Float[torch.Tensor, " d_in"] | None = None,
    ) -> EncodedCodes:
        k, n_steps = int(self.cfg.k), self._encoder_steps
        if self.cfg.step_matrix == "tied":
            n = _n_candidates(self)
            return encode_codes_tied(
                centred, self.W_enc, dictionary, k, self.signed, n_steps, n, self.n_ranked
            )
        return encode_codes(
            centred, self.W_enc, k, self.signed, self.S, n_steps, self.n_ranked, bias
        )

    @override
    def replay_key(self) -> Hashable:
        return super().replay_key(), self._encoder_steps

    @override
    @not_compiled
    def begin_step(self, step_input: TrainStepInput) -> None:
        warm = self.n_steps >= self.cfg.encoder_warm_up_steps
        self._encoder_steps = self.cfg.encoder_steps if warm else 1
        super().begin_step(step_input)

    @override
    @torch.no_grad()
    def resample(self, dead: torch.Tensor, sae_in: torch.Tensor) -> torch.Tensor:
        moved = super().resample(dead, sae_in)
        if self.cfg.step_matrix == "full":
            # what S learned about the old atoms would be wrong for the new ones
            entries = moved | moved[:, None]
            self.S.masked_fill_(entries, 0)
            self._optimizer_changes.request(self.S, forget_moments([(self.S, entries)]))
        return moved

    @override
    @torch.no_grad()
    def set_unit_norm_atoms(self) -> None:
        if self.cfg.step_matrix == "full":
            norm = self.get_W_dec_norm()
            self.S.mul_(norm).div_(norm[:, None])
        super().set_unit_norm_atoms()

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        _check_step_matrix(self, state_dict)


_Multistep = ISAEMESAE | ISAEMETrainingSAE


def _encode(sae: _Multistep, x: torch.Tensor, n_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    linear_pre = sae.hook_sae_acts_pre(sae.process_sae_in(x) @ sae.W_enc + sae.b_enc)
    linear_pre = _rescaled(sae, linear_pre)
    feature_acts, hidden_pre = multistep_encode(
        linear_pre,
        apply_step_matrix=lambda acts: _times_step_matrix(sae, acts),
        activation_fn=sae.activation_fn,
        n_steps=n_steps,
        candidates=_candidates(sae, linear_pre),
    )
    return sae.hook_sae_acts_post(feature_acts), hidden_pre


def _n_candidates(sae: _Multistep) -> int | None:
    factor = sae.cfg.candidates
    return None if factor is None else min(round(factor * sae.cfg.k), sae.cfg.d_sae)


def _candidates(sae: _Multistep, linear_pre: torch.Tensor) -> torch.Tensor | None:
    n = _n_candidates(sae)
    if n is None:
        return None
    flat = linear_pre.flatten(0, -2)
    indices = select_largest(flat, n, sae.cfg.activation == "abstopk").indices
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, indices, True)
    return chosen.view_as(linear_pre)


def _times_step_matrix(sae: _Multistep, feature_acts: torch.Tensor) -> torch.Tensor:
    if sae.cfg.step_matrix == "full":
        return feature_acts @ sae.S
    if sae.cfg.rescale_acts_by_decoder_norm:
        # a zero atom has no code; stock division by its norm would make all codes NaN
        norm = sae.W_dec.norm(dim=-1)
        recons = (feature_acts / torch.where(norm > 0, norm, 1.0)) @ sae.W_dec
    else:
        recons = feature_acts @ sae.W_dec
    return feature_acts - _rescaled(sae, recons @ sae.W_enc)


def _rescaled(sae: _Multistep, pre_acts: torch.Tensor) -> torch.Tensor:
    if sae.cfg.rescale_acts_by_decoder_norm:
        return pre_acts * sae.W_dec.norm(dim=-1)
    return pre_acts


def _initialize_step_matrix(sae: _Multistep) -> None:
    if sae.cfg.step_matrix == "full":
        shape = (sae.cfg.d_sae, sae.cfg.d_sae)
        sae.S = nn.Parameter(torch.zeros(shape, dtype=sae.dtype, device=sae.device))


def _check_step_matrix(sae: _Multistep, state_dict: dict[str, Any]) -> None:
    found = tuple(state_dict["S"].shape) if "S" in state_dict else None
    expected = (sae.cfg.d_sae,) * 2 if sae.cfg.step_matrix == "full" else None
    if found != expected:
        raise InputError(
            f"the checkpoint's step matrix S has shape {found}, but step_matrix="
            f"{sae.cfg.step_matrix!r} with d_sae={sae.cfg.d_sae} needs {expected} "
            "(None: no S at all). The weights and cfg.json are not of the same SAE."
        )
