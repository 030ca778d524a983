"""The mechanism that adds loss terms to a SAELens training class by config alone.

A term is one file: a config dataclass with its (flat, command-line friendly) fields and their
checks, and a `LossTerm` that reads them. `losses/__init__.py` lists both. Nothing here knows any
term by name, and a training class needs only the methods of `LossTermsMixin`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from sae_lens import TrainingSAE, TrainingSAEConfig
from torch import nn
from typing_extensions import override

from sae_lens_isae.distributed import joined
from sae_lens_isae.errors import InputError
from sae_lens_isae.ops.compiling import not_compiled
from sae_lens_isae.ops.sparse import dense_codes

Metric = torch.Tensor | float | int | Callable[[], torch.Tensor | float | int]


@dataclass(frozen=True)
class StepContext:
    """What a loss term may look at in one training step.

    `hidden_pre` holds the unsparsified codes, that is what the final activation function saw,
    `ranked` the indices of its largest entries where the encoder told them, and `dictionary` the
    decoder's atoms with unit norm, differentiable in `W_dec`. Codes are dense.
    """

    sae: LossTermsMixin
    sae_in: Float[torch.Tensor, "batch d_in"]
    feature_acts: Float[torch.Tensor, "batch d_sae"]
    hidden_pre: Float[torch.Tensor, "batch d_sae"]
    sae_out: Float[torch.Tensor, "batch d_in"]
    dictionary: Float[torch.Tensor, "d_sae d_in"]
    ranked: Int[torch.Tensor, "batch n_ranked"] | None = None


class LossTerm(nn.Module, ABC):
    """One addend of the training loss.

    `forward` may be recorded once as a CUDA graph and replayed: it must not wait for the device,
    and what changes from step to step without being a function of the batch goes through `inputs`.
    A term that keeps running statistics registers them as buffers that start at zero: they are
    saved with training checkpoints, keep their precision regardless of the SAE's, and are left out
    of the exported SAE.
    """

    name: ClassVar[str]
    """Key of the term in `losses/<name>` of SAELens' logs."""

    @property
    def n_ranked(self) -> int:
        """How many of the largest entries of `hidden_pre` the term looks at."""
        return 0

    @classmethod
    @abstractmethod
    def from_config(cls, cfg: TrainingSAEConfig) -> LossTerm | None:
        """The term as `cfg` describes it, or None where `cfg` switches it off."""

    def prepare(self, sae: LossTermsMixin, sae_in: Float[torch.Tensor, "batch d_in"]) -> None:
        """Called once, with the first batch of a run, that of all ranks, before anything is trained
        on it: checks of the data and first values of statistics. It may wait for the device.

        Raises:
            InputError: The term cannot work with these activations.
        """

    def observe(self, sae_in: Float[torch.Tensor, "batch d_in"]) -> None:
        """Called before every step with its batch, outside of what is recorded: statistics of the
        activations, over all ranks of a data-parallel run."""

    def inputs(
        self,
        step: int,  # noqa: ARG002
        batch_size: int,  # noqa: ARG002
        device: torch.device,  # noqa: ARG002
    ) -> tuple[torch.Tensor, ...]:
        """What `forward` needs besides the batch: random numbers, a weight that warms up."""
        return ()

    @abstractmethod
    def forward(self, ctx: StepContext, *inputs: torch.Tensor) -> Float[torch.Tensor, ""]:
        """The weighted loss of this step."""

    def metrics(self, ctx: StepContext) -> dict[str, Metric]:  # noqa: ARG002
        """What to log beside the loss; called on logging steps only."""
        return {}

    @override
    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> LossTerm:
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return fn(tensor) if tensor.is_meta else tensor.to(fn(tensor.new_empty(0)).device)

        # an SAE in bfloat16 has too few digits for counts and running means: only devices change
        return super()._apply(moved, recurse)


def check_weight(cfg: TrainingSAEConfig, name: str) -> None:
    """Raise an InputError unless the field `name` can be the weight of a loss."""
    weight = getattr(cfg, name)
    if not (math.isfinite(weight) and weight >= 0):
        raise InputError(f"{name} must be a number >= 0, got {weight}")


class LossTermsMixin(TrainingSAE[Any]):
    """Holds the loss terms of a training SAE. Stands before the SAELens class among the bases."""

    loss_terms: nn.ModuleDict
    _terms_are_prepared = False
    n_steps: int = 0
    """Training steps taken, for schedules and noise. It goes through checkpoints, where SAELens'
    own `n_training_steps` comes back one step short. Read and write it outside of what
    torch.compile sees: it would recompile for every value."""

    def build_loss_terms(self, term_classes: Iterable[type[LossTerm]]) -> None:
        """Create the terms that the config switches on. Called once, after `super().__init__`."""
        terms = {term.name: term.from_config(self.cfg) for term in term_classes}
        present = nn.ModuleDict({n: t for n, t in terms.items() if t is not None})
        self.loss_terms = present.to(self.device)

    @not_compiled
    def prepare_terms(self, sae_in: Float[torch.Tensor, "batch d_in"]) -> None:
        """Let every term look at a batch before its step, at the first one for longer."""
        if not self._terms_are_prepared:
            first = joined(sae_in)
            for _, term in self._terms():
                term.prepare(self, first)
            self._terms_are_prepared = True
        for _, term in self._terms():
            term.observe(sae_in)

    def encode_again(self, ctx: StepContext) -> Float[torch.Tensor, "batch d_sae"]:
        """Codes of this step's reconstruction: the second half of the latent self-map ('Latent
        Recovery', equation 24)."""
        return dense_codes(self.encode_with_hidden_pre(ctx.sae_out)[0])

    def code_scale(self) -> Float[torch.Tensor, " d_sae"] | float:
        """What brings codes into units of unit-norm atoms."""
        rescaled = getattr(self.cfg, "rescale_acts_by_decoder_norm", False)
        return 1.0 if rescaled else self.W_dec.norm(dim=-1)

    def sample_weights(
        self,
        sae_in: Float[torch.Tensor, "batch d_in"],  # noqa: ARG002
    ) -> Float[torch.Tensor, "batch 1"] | float:
        """What squared errors of a sample are multiplied with in this SAE's reconstruction loss."""
        return 1.0

    @not_compiled
    def term_inputs(self, batch_size: int) -> dict[str, tuple[torch.Tensor, ...]]:
        """What every term needs besides the batch, by the name of the term."""
        return {
            name: term.inputs(self.n_steps, batch_size, self.device) for name, term in self._terms()
        }

    def term_losses(
        self, ctx: StepContext, inputs: Mapping[str, tuple[torch.Tensor, ...]]
    ) -> dict[str, torch.Tensor]:
        """Loss of every term, by name.

        Args:
            inputs: As `term_inputs` returned them.
        """
        return {name: term(ctx, *inputs[name]) for name, term in self._terms()}

    @property
    def n_ranked(self) -> int:
        """How many of the largest entries of `hidden_pre` a step looks at."""
        return max((term.n_ranked for _, term in self._terms()), default=0)

    def term_metrics(self, ctx: StepContext) -> dict[str, Metric]:
        """Metrics of every term, for logging steps."""
        return {key: value for _, term in self._terms() for key, value in term.metrics(ctx).items()}

    def _terms(self) -> list[tuple[str, LossTerm]]:
        return [(n, t) for n, t in self.loss_terms.items() if isinstance(t, LossTerm)]

    def get_extra_state(self) -> torch.Tensor:
        """`n_steps` as a tensor, which is all that SAELens' safetensors files can hold."""
        return torch.tensor(self.n_steps)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Restore `n_steps`."""
        self.n_steps = int(state)

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """Drop what only training needs, so that stock SAELens finds the keys it expects."""
        super().process_state_dict_for_saving_inference(state_dict)
        drop_training_state(state_dict)

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Let an exported SAE, which has no training state, be trained further."""
        super().process_state_dict_for_loading(state_dict)
        for key, value in self.state_dict().items():
            if _is_training_state(key) and key not in state_dict:
                # not zeros_like: SAELens builds the module on the meta device before it loads
                state_dict[key] = torch.zeros(value.shape, dtype=value.dtype, device="cpu")


def drop_training_state(state_dict: dict[str, Any]) -> None:
    """Remove step counter, running statistics and means from a state dict, in place."""
    for key in [key for key in state_dict if _is_training_state(key)]:
        del state_dict[key]


def _is_training_state(key: str) -> bool:
    return key == "_extra_state" or key.startswith(("loss_terms.", "weight_average."))
