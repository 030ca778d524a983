"""SAELens' own architectures with loss terms added: `regularized_topk` and the like.

Each trains exactly as the stock class, plus the terms that its config switches on, and exports the
stock inference SAE. `regularize` does the same for a class of one's own.
"""

from dataclasses import dataclass, make_dataclass
from typing import Any, TypeVar, cast

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

SAEClass = TypeVar("SAEClass", bound=TrainingSAE[Any])
ConfigClass = TypeVar("ConfigClass", bound=TrainingSAEConfig)

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
        ctx = self._context(step_input.sae_in, feature_acts, hidden_pre, sae_out)
        inputs = self.term_inputs(len(step_input.sae_in))
        return {**stock, **self.term_losses(ctx, inputs)}

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self.prepare_terms(step_input.sae_in)
        output = super().training_forward_pass(step_input)
        if step_input.is_logging_step:
            ctx = self._context(
                step_input.sae_in, output.feature_acts, output.hidden_pre, output.sae_out
            )
            output.metrics.update(self.term_metrics(ctx))  # pyright: ignore[reportArgumentType,reportCallIssue]
        self._count_step()
        return output

    def _context(
        self,
        sae_in: torch.Tensor,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> StepContext:
        return StepContext(
            sae=self,
            sae_in=sae_in,
            feature_acts=dense_codes(feature_acts),
            hidden_pre=hidden_pre,
            sae_out=sae_out,
            dictionary=torch.nn.functional.normalize(self.W_dec, dim=-1),
        )

    @not_compiled
    def _count_step(self) -> None:
        self.n_steps += 1


@dataclass(kw_only=True)
class RegularizedConfig(LossTermsConfig):
    """Stands after a SAELens config among the bases: the fields of the loss terms, and the stock
    SAE as what is exported."""

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return get_sae_class(self.architecture().removeprefix(_PREFIX))[1]


def regularize(
    sae_class: type[SAEClass], config_class: type[ConfigClass], module: str | None = None
) -> tuple[type[SAEClass], type[ConfigClass]]:
    """Add the loss terms to a SAELens training class.

    The architecture is called `regularized_` and the name of the stock one. To use it in SAELens,
    hand all three to `sae_lens.register_sae_training_class`.

    Args:
        module: Where the two classes are assigned to their names, for pickling; by default that of
            `sae_class`.

    Returns:
        The training class and its config. The config has the fields of `LossTermsConfig` too.

    Examples:
        >>> sae_class, config_class = regularize(TopKTrainingSAE, TopKTrainingSAEConfig)
        >>> config_class(d_in=16, d_sae=32, k=2, arip_weight=0.1).architecture()
        'regularized_topk'
    """
    architecture = _PREFIX + config_class.architecture()
    shared = {
        "__doc__": f"SAELens' `{config_class.architecture()}` with loss terms.",
        "__module__": module or sae_class.__module__,
    }
    config = make_dataclass(
        f"Regularized{config_class.__name__}",
        [],
        bases=(config_class, RegularizedConfig),
        namespace={**shared, "architecture": classmethod(lambda _: architecture)},
    )
    sae = type(f"Regularized{sae_class.__name__}", (RegularizedMixin, sae_class), shared)
    return cast("type[SAEClass]", sae), config


RegularizedStandardTrainingSAE, RegularizedStandardTrainingSAEConfig = regularize(
    StandardTrainingSAE, StandardTrainingSAEConfig, __name__
)
RegularizedTopKTrainingSAE, RegularizedTopKTrainingSAEConfig = regularize(
    TopKTrainingSAE, TopKTrainingSAEConfig, __name__
)
RegularizedAbsTopKTrainingSAE, RegularizedAbsTopKTrainingSAEConfig = regularize(
    AbsTopKTrainingSAE, AbsTopKTrainingSAEConfig, __name__
)
RegularizedBatchTopKTrainingSAE, RegularizedBatchTopKTrainingSAEConfig = regularize(
    BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, __name__
)
RegularizedMatryoshkaBatchTopKTrainingSAE, RegularizedMatryoshkaBatchTopKTrainingSAEConfig = (
    regularize(MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig, __name__)
)
RegularizedJumpReLUTrainingSAE, RegularizedJumpReLUTrainingSAEConfig = regularize(
    JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, __name__
)
RegularizedGatedTrainingSAE, RegularizedGatedTrainingSAEConfig = regularize(
    GatedTrainingSAE, GatedTrainingSAEConfig, __name__
)
RegularizedMatchingPursuitTrainingSAE, RegularizedMatchingPursuitTrainingSAEConfig = regularize(
    MatchingPursuitTrainingSAE, MatchingPursuitTrainingSAEConfig, __name__
)

REGULARIZED: tuple[tuple[type[TrainingSAE[Any]], type[TrainingSAEConfig]], ...] = (
    (RegularizedStandardTrainingSAE, RegularizedStandardTrainingSAEConfig),
    (RegularizedTopKTrainingSAE, RegularizedTopKTrainingSAEConfig),
    (RegularizedAbsTopKTrainingSAE, RegularizedAbsTopKTrainingSAEConfig),
    (RegularizedBatchTopKTrainingSAE, RegularizedBatchTopKTrainingSAEConfig),
    (RegularizedMatryoshkaBatchTopKTrainingSAE, RegularizedMatryoshkaBatchTopKTrainingSAEConfig),
    (RegularizedJumpReLUTrainingSAE, RegularizedJumpReLUTrainingSAEConfig),
    (RegularizedGatedTrainingSAE, RegularizedGatedTrainingSAEConfig),
    (RegularizedMatchingPursuitTrainingSAE, RegularizedMatchingPursuitTrainingSAEConfig),
)
"""All of them, for SAELens' registry."""
