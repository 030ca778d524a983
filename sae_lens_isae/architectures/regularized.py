"""SAELens' own architectures with loss terms added: `regularized_topk` and the like.

Each is a registered twin of a stock training class. It trains exactly as the stock one, plus the
terms that its config switches on, and exports the stock inference SAE. `RegularizedMixin` and
`TwinConfig` do the same for a class of one's own.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import (
    AbsTopKTrainingSAE,
    AbsTopKTrainingSAEConfig,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatchingPursuitTrainingSAE,
    MatchingPursuitTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    SAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
    TrainingSAE,
    TrainingSAEConfig,
)
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from typing_extensions import override

from sae_lens_isae.losses import LOSS_TERMS, LossTermsConfig, LossTermsMixin, StepContext
from sae_lens_isae.ops.compiling import not_compiled
from sae_lens_isae.ops.sparse import dense_codes

_PREFIX = "regularized_"


class RegularizedMixin(LossTermsMixin):
    """Adds the loss terms to a SAELens training class through its auxiliary loss. Stands before
    that class among the bases."""

    def __init__(self, cfg: Any, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.build_loss_terms(LOSS_TERMS)

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        # abstract only for the mixin alone: the stock class that follows it implements it
        stock = super().calculate_aux_loss(  # pyright: ignore[reportAbstractUsage]
            step_input, feature_acts, hidden_pre, sae_out
        )
        if isinstance(stock, torch.Tensor):
            stock = {"auxiliary_loss": stock}
        ctx = self._context(step_input, feature_acts, hidden_pre, sae_out)
        inputs = self.term_inputs(len(step_input.sae_in))
        return {**stock, **self.term_losses(ctx, inputs)}

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self.prepare_terms(step_input.sae_in)
        output = super().training_forward_pass(step_input)
        if step_input.is_logging_step:
            ctx = self._context(step_input, output.feature_acts, output.hidden_pre, output.sae_out)
            output.metrics.update(self.term_metrics(ctx))  # pyright: ignore[reportArgumentType,reportCallIssue]
        self._count_step()
        return output

    def _context(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> StepContext:
        dictionary = torch.nn.functional.normalize(self.W_dec, dim=-1)
        acts = dense_codes(feature_acts)
        return StepContext(self, step_input, acts, hidden_pre, sae_out, dictionary)

    @not_compiled
    def _count_step(self) -> None:
        self.n_steps += 1


@dataclass(kw_only=True)
class TwinConfig(LossTermsConfig):
    """Stands after a SAELens config among the bases: the loss terms' fields, and the stock SAE as
    what is exported."""

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return get_sae_class(self.architecture().removeprefix(_PREFIX))[1]


@dataclass
class RegularizedStandardTrainingSAEConfig(StandardTrainingSAEConfig, TwinConfig):
    """SAELens' `standard` with loss terms."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "regularized_standard"


class RegularizedStandardTrainingSAE(RegularizedMixin, StandardTrainingSAE):
    """SAELens' `standard` with loss terms."""

    cfg: RegularizedStandardTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class RegularizedTopKTrainingSAEConfig(TopKTrainingSAEConfig, TwinConfig):
    """SAELens' `topk` with loss terms."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "regularized_topk"


class RegularizedTopKTrainingSAE(RegularizedMixin, TopKTrainingSAE):
    """SAELens' `topk` with loss terms."""

    cfg: RegularizedTopKTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class RegularizedAbsTopKTrainingSAEConfig(AbsTopKTrainingSAEConfig, TwinConfig):
    """SAELens' `abstopk` with loss terms."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "regularized_abstopk"


class RegularizedAbsTopKTrainingSAE(RegularizedMixin, AbsTopKTrainingSAE):
    """SAELens' `abstopk` with loss terms."""

    cfg: RegularizedAbsTopKTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class RegularizedBatchTopKTrainingSAEConfig(BatchTopKTrainingSAEConfig, TwinConfig):
    """SAELens' `batchtopk` with loss terms; exports `jumprelu`, as the stock one does."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "regularized_batchtopk"


class RegularizedBatchTopKTrainingSAE(RegularizedMixin, BatchTopKTrainingSAE):
    """SAELens' `batchtopk` with loss terms."""

    cfg: RegularizedBatchTopKTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class RegularizedMatryoshkaBatchTopKTrainingSAEConfig(
    MatryoshkaBatchTopKTrainingSAEConfig, TwinConfig
):
    """SAELens' `matryoshka_batchtopk` with loss terms; exports `jumprelu` as the stock one."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "regularized_matryoshka_batchtopk"


class RegularizedMatryoshkaBatchTopKTrainingSAE(RegularizedMixin, MatryoshkaBatchTopKTrainingSAE):
    """SAELens' `matryoshka_batchtopk` with loss terms."""

    cfg: RegularizedMatryoshkaBatchTopKTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class RegularizedJumpReLUTrainingSAEConfig(JumpReLUTrainingSAEConfig, TwinConfig):
    """SAELens' `jumprelu` with loss terms."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "regularized_jumprelu"


class RegularizedJumpReLUTrainingSAE(RegularizedMixin, JumpReLUTrainingSAE):
    """SAELens' `jumprelu` with loss terms."""

    cfg: RegularizedJumpReLUTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class RegularizedGatedTrainingSAEConfig(GatedTrainingSAEConfig, TwinConfig):
    """SAELens' `gated` with loss terms."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "regularized_gated"


class RegularizedGatedTrainingSAE(RegularizedMixin, GatedTrainingSAE):
    """SAELens' `gated` with loss terms."""

    cfg: RegularizedGatedTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class RegularizedMatchingPursuitTrainingSAEConfig(MatchingPursuitTrainingSAEConfig, TwinConfig):
    """SAELens' `matching_pursuit` with loss terms."""

    @override
    @classmethod
    def architecture(cls) -> str:
        return "regularized_matching_pursuit"


class RegularizedMatchingPursuitTrainingSAE(RegularizedMixin, MatchingPursuitTrainingSAE):
    """SAELens' `matching_pursuit` with loss terms."""

    cfg: RegularizedMatchingPursuitTrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]


TWINS: tuple[tuple[type[TrainingSAE[Any]], type[TrainingSAEConfig]], ...] = (
    (RegularizedStandardTrainingSAE, RegularizedStandardTrainingSAEConfig),
    (RegularizedTopKTrainingSAE, RegularizedTopKTrainingSAEConfig),
    (RegularizedAbsTopKTrainingSAE, RegularizedAbsTopKTrainingSAEConfig),
    (RegularizedBatchTopKTrainingSAE, RegularizedBatchTopKTrainingSAEConfig),
    (
        RegularizedMatryoshkaBatchTopKTrainingSAE,
        RegularizedMatryoshkaBatchTopKTrainingSAEConfig,
    ),
    (RegularizedJumpReLUTrainingSAE, RegularizedJumpReLUTrainingSAEConfig),
    (RegularizedGatedTrainingSAE, RegularizedGatedTrainingSAEConfig),
    (RegularizedMatchingPursuitTrainingSAE, RegularizedMatchingPursuitTrainingSAEConfig),
)
"""All of the above, for SAELens' registry."""
