"""iSAE: TopK, AbsTopK and AbsTopK + aRIP under one recipe (paper 1, sections 3.2 and 3.3).

The exported SAE is SAELens' own `topk` or `abstopk` and needs nothing from this package.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float
from sae_lens import (
    AbsTopKSAEConfig,
    SAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.abstopk_sae import AbsTopK
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopK
from typing_extensions import override

from sae_lens_isae.architectures.recipe import (
    DeadLatentSlots,
    NonFiniteWatch,
    dead_latent_acts,
    first_dead,
    geometric_median,
    inverse_norm,
    project_to_unit_norm,
    unit_norm_mse,
)
from sae_lens_isae.architectures.resampling import duplicates, move_latents, take_over
from sae_lens_isae.errors import InputError
from sae_lens_isae.losses import (
    LOSS_TERMS,
    LossTermsConfig,
    LossTermsMixin,
    StepContext,
    check_weight,
    drop_training_state,
)
from sae_lens_isae.ops.compiling import not_compiled
from sae_lens_isae.ops.fused_adam import fuse_adam_of
from sae_lens_isae.ops.graphs import GraphedStep
from sae_lens_isae.ops.multistep import EncodedCodes, encode_codes
from sae_lens_isae.ops.sparse import decode_codes, to_dense

Activation = Literal["abstopk", "topk"]

_ACTIVATIONS: dict[str, type[TopK] | type[AbsTopK]] = {"abstopk": AbsTopK, "topk": TopK}
_GRAPHED_UP_TO = 1 << 26
"""Batch size times d_sae up to which launches take longer than the work; a graph keeps the memory
of a step for itself."""
_NORMALIZATIONS = (
    "none",
    "expected_average_only_in",
    "covariance_whitening",
    "constant_norm_rescale",
)


def _check_activation(activation: str) -> None:
    if activation not in _ACTIVATIONS:
        raise InputError(f"activation must be one of {sorted(_ACTIVATIONS)}, got {activation!r}")


@dataclass
class ISAESAEConfig(TopKSAEConfig):
    """Inference config behind `isae` training checkpoints (exports are plain `topk`/`abstopk`)."""

    activation: Activation = "abstopk"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_activation(self.activation)

    @override
    @classmethod
    def architecture(cls) -> str:
        return "isae"


class ISAESAE(TopKSAE):
    """Inference SAE with a choice of activation, for loading an `isae` training checkpoint."""

    cfg: ISAESAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    @override
    def get_activation_fn(self) -> TopK | AbsTopK:
        return _ACTIVATIONS[self.cfg.activation](self.cfg.k)

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        drop_training_state(state_dict)


@dataclass
class ISAETrainingSAEConfig(TopKTrainingSAEConfig, LossTermsConfig):
    """Train the paper's linear-encoder variants under its recipe.

    TopK is `activation="topk", arip_weight=0`; AbsTopK is `arip_weight=0`; iSAE is the default.
    For activations of a real model set `normalize_activations="expected_average_only_in"`: Adam
    moves the bias by about the learning rate per step whatever the scale of x, and SAELens folds
    the constant away at the end.
    """

    activation: Activation = "abstopk"
    """Sparsifier: 'abstopk' keeps the k largest magnitudes with sign, 'topk' is the usual one."""
    arip_weight: float = 0.1
    """Weight of the approximate-RIP regulariser; 0 switches it off, the paper uses 0.1."""
    aux_loss_coefficient: float = 1 / 32
    """Weight of the loss that lets dead latents reconstruct the residual (Gao et al.: 1/32)."""
    resample_until: int = 0
    """Until this training step dead latents, and those that repeat another, are placed on
    directions that many residuals share, every `resample_every` steps; 0, the paper's recipe,
    leaves them to the dead-latent loss."""
    resample_every: int = 100
    """Steps between two resamplings."""
    cuda_graph: bool = True
    """On a CUDA device, record the step once and replay it: the host's launches are what a step of
    moderate size waits for. Steps with hooks, with large batches or dictionaries, or under
    torch.compile are not recorded."""
    decoder_init_norm: float | None = 1.0
    """Norm of the atoms at the start; the recipe keeps them at 1 and accepts nothing else."""
    normalize_activations: Literal[  # pyright: ignore[reportIncompatibleVariableOverride]
        "none", "expected_average_only_in", "covariance_whitening", "constant_norm_rescale"
    ] = "none"
    """'none', 'expected_average_only_in' and 'covariance_whitening' export a stateless SAE;
    'constant_norm_rescale' is the paper's exact placement, with the limits of SAELens' run-time
    normalisation. Whitening (SAELens' own, folded in at the end) keeps latents from settling on
    what many concepts have in common; atoms of the exported SAE do not have unit norm then."""

    def __post_init__(self) -> None:
        if self.d_in < 1 or self.d_sae < 1:
            raise InputError(f"d_in and d_sae must be >= 1, got {self.d_in} and {self.d_sae}")
        if self.k < 1 or self.k != int(self.k):
            raise InputError(f"k must be an integer >= 1, got {self.k}")
        if 2 * self.k > self.d_sae:
            raise InputError(
                f"k: the recipe looks at 2k latents, but 2 * {self.k} exceeds d_sae = {self.d_sae}"
            )
        _check_activation(self.activation)
        check_weight(self, "aux_loss_coefficient")
        if self.resample_until < 0:
            raise InputError(f"resample_until must be >= 0, got {self.resample_until}")
        if self.resample_every < 1:
            raise InputError(f"resample_every must be >= 1, got {self.resample_every}")
        if self.normalize_activations not in _NORMALIZATIONS:
            raise InputError(
                f"normalize_activations must be one of {list(_NORMALIZATIONS)}, got "
                f"{self.normalize_activations!r}: the recipe's loss is on unit-norm inputs"
            )
        for name, required in _FIXED_BY_RECIPE.items():
            if (value := getattr(self, name)) != required:
                raise InputError(
                    f"{name} must be {required} for {self.architecture()!r}, got {value}: "
                    f"{_WHY_FIXED[name]}"
                )
        super().__post_init__()

    @override
    @classmethod
    def architecture(cls) -> str:
        return "isae"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return AbsTopKSAEConfig if self.activation == "abstopk" else TopKSAEConfig


_FIXED_BY_RECIPE: dict[str, object] = {
    "apply_b_dec_to_input": True,
    "use_sparse_activations": False,
    "decoder_init_norm": 1.0,
}
_WHY_FIXED = {
    "apply_b_dec_to_input": "input and output share one bias",
    "use_sparse_activations": "signed codes have no sparse tensor form in SAELens",
    "decoder_init_norm": "atoms have unit norm",
}


class ISAETrainingSAE(LossTermsMixin, TopKTrainingSAE):
    """Training SAE of the paper's recipe.

    SAELens' trainer has no hook for projecting the atoms or for starting the bias from data, so
    both happen at the head of `training_forward_pass`.
    """

    cfg: ISAETrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, cfg: ISAETrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        # homogeneity in x - b, and with it the stateless form of the recipe, needs it to stay 0
        self.b_enc.requires_grad_(False)
        self.build_loss_terms(LOSS_TERMS)
        self._bias_is_set = False
        self._adam_is_fused = False
        self._watch = NonFiniteWatch()
        self._slots = DeadLatentSlots()
        self._graphed_step = GraphedStep()
        self._loss_names: list[str] = []

    @override
    def get_activation_fn(self) -> TopK | AbsTopK:
        return _ACTIVATIONS[self.cfg.activation](self.cfg.k)

    @property
    def signed(self) -> bool:
        """Whether latents may fire with either sign."""
        return self.cfg.activation == "abstopk"

    def encode_codes(
        self,
        centred: Float[torch.Tensor, "batch d_in"],
        dictionary: Float[torch.Tensor, "d_sae d_in"],  # noqa: ARG002
    ) -> EncodedCodes:
        """Encode for training: codes as indices and values, with a backward pass on supports.

        Args:
            centred: x - b.
            dictionary: The atoms, with unit norm.
        """
        return encode_codes(centred, self.W_enc, int(self.cfg.k), self.signed)

    @override
    def encode_again(self, ctx: StepContext) -> Float[torch.Tensor, "batch d_sae"]:
        codes = self.encode_codes(self.process_sae_in(ctx.sae_out), ctx.dictionary)
        return to_dense(codes.indices, codes.values, self.cfg.d_sae)

    @override
    def sample_weights(
        self, sae_in: Float[torch.Tensor, "batch d_in"]
    ) -> Float[torch.Tensor, "batch 1"]:
        return inverse_norm(sae_in).square()

    @torch.no_grad()
    def initialize_bias(self, activations: Float[torch.Tensor, "batch d_in"]) -> None:
        """Start the shared bias at the geometric median of real activations.

        The first training step does it with its batch. Call it before training to use a larger
        sample; a model loaded from disk keeps its bias.
        """
        sae_in = self.run_time_activation_norm_fn_in(activations.to(self.dtype))
        self.b_dec.copy_(geometric_median(sae_in))
        self._bias_is_set = True

    @torch.no_grad()
    def set_unit_norm_atoms(self) -> None:
        """Give atoms unit norm and rescale codes by what they had, in place.

        What a code decodes to stays. Which latents are the largest may change where atoms had
        different norms, as they have after SAELens folded a whitening into them.
        """
        self.cfg.rescale_acts_by_decoder_norm = True
        self.fold_W_dec_norm()

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self.begin_step(step_input)
        self.prepare_terms(step_input.sae_in)
        sae_in, dead = step_input.sae_in, step_input.dead_neuron_mask
        term_inputs = self.term_inputs(len(sae_in))

        def tensors_of_step(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            remaining = iter(tensors)
            this = replace(
                step_input,
                sae_in=next(remaining),
                dead_neuron_mask=None if dead is None else next(remaining),
            )
            given = [[next(remaining) for _ in of_term] for of_term in term_inputs]
            losses, ctx = self.losses_of_step(this, given)
            self._loss_names = list(losses)
            values = torch.stack(list(losses.values()))
            kept = (ctx.feature_acts, ctx.hidden_pre, ctx.sae_out, ctx.dictionary)
            return values.sum(), values.detach(), *(t.detach() for t in kept)

        inputs = (sae_in, *(() if dead is None else (dead,)), *itertools.chain(*term_inputs))
        loss, values, *kept = self._run_step(tensors_of_step, inputs)
        # a replay overwrites its outputs, and losses are what people keep
        loss, values = loss.clone(), values.clone()
        self._watch.record(loss, step_input.n_training_steps)
        ctx = StepContext(self, step_input, *kept)
        return TrainStepOutput(
            sae_in=sae_in,
            sae_out=ctx.sae_out,
            feature_acts=ctx.feature_acts,
            hidden_pre=ctx.hidden_pre,
            loss=loss,
            losses=dict(zip(self._loss_names, values.unbind(), strict=True)),
            metrics=cast(Any, self.term_metrics(ctx)),
        )

    def losses_of_step(
        self, step_input: TrainStepInput, term_inputs: Sequence[Sequence[torch.Tensor]]
    ) -> tuple[dict[str, torch.Tensor], StepContext]:
        """The differentiable part of a training step: every loss by name, and what they saw.

        On a CUDA device this is recorded and replayed: what it does may depend on the tensors it is
        given, on parameters and on what `step_kind` names, and it must not wait for the device.
        """
        project_to_unit_norm(self.W_dec)
        # for the gradient: it has no part along the atoms, which the projection would undo
        dictionary = torch.nn.functional.normalize(self.W_dec, dim=-1)
        centred = self.process_sae_in(step_input.sae_in)
        codes = self.encode_codes(centred, dictionary)
        self.hook_sae_acts_pre(codes.linear_pre)
        feature_acts = to_dense(codes.indices, codes.values, self.cfg.d_sae)
        recons = decode_codes(dictionary, codes.indices, codes.values) + self.b_dec
        recons = self.run_time_activation_norm_fn_out(self.hook_sae_recons(recons))
        sae_out = self.reshape_fn_out(recons, self.d_head)
        feature_acts = self.hook_sae_acts_post(feature_acts)
        ctx = StepContext(self, step_input, feature_acts, codes.hidden_pre, sae_out, dictionary)
        aux = self.calculate_aux_loss(step_input, feature_acts, codes.linear_pre, sae_out)
        losses = {"mse_loss": unit_norm_mse(sae_out, step_input.sae_in), **aux}
        return {**losses, **self.term_losses(ctx, term_inputs)}, ctx

    @not_compiled
    def _run_step(
        self,
        function: Callable[..., tuple[torch.Tensor, ...]],
        inputs: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        hooked = any(point.has_hooks() for point in self.hook_dict.values())
        large = len(inputs[0]) * self.cfg.d_sae > _GRAPHED_UP_TO
        if hooked or large or not self.cfg.cuda_graph:
            return function(*inputs)
        return self._graphed_step(function, inputs, self, self.step_kind())

    def step_kind(self) -> Hashable:
        """What the course of `losses_of_step` depends on besides its tensors."""
        return self._slots.n

    # steps are counted here, and torch.compile would compile anew for every count
    @not_compiled
    def begin_step(self, step_input: TrainStepInput) -> None:
        """What comes before the forward pass: checks, start of the bias, resampling, the count of
        dead latents."""
        self._watch.check()
        if step_input.sae_in.shape[1:] != (self.cfg.d_in,):
            raise InputError(
                f"d_in is {self.cfg.d_in}, but the activations have shape "
                f"{tuple(step_input.sae_in.shape)} instead of [batch, d_in]"
            )
        if not self.cfg.rescale_acts_by_decoder_norm:
            # a whitening was folded into the weights, at the end of a run: the optimizer is another
            self.set_unit_norm_atoms()
            self._adam_is_fused = False
        if not self._bias_is_set:
            self.initialize_bias(step_input.sae_in)
        if not self._adam_is_fused:
            fuse_adam_of(self.W_dec)
            self._adam_is_fused = True
        dead = step_input.dead_neuron_mask
        due = 0 < self.n_steps <= self.cfg.resample_until
        if due and dead is not None and self.n_steps % self.cfg.resample_every == 0:
            self.resample(dead, step_input.sae_in)
        if dead is not None:
            self._slots.update(dead)
        self.n_steps += 1

    @torch.no_grad()
    def resample(
        self, dead: Bool[torch.Tensor, " d_sae"], sae_in: Float[torch.Tensor, "batch d_in"]
    ) -> Bool[torch.Tensor, " d_sae"]:
        """Place dead and duplicate latents on what many residuals of `sae_in` share.

        Returns:
            Which latents moved.
        """
        # seldom done, so in full precision
        with torch.autocast(sae_in.device.type, enabled=False):
            dictionary = torch.nn.functional.normalize(self.W_dec, dim=-1)
            centred = self.process_sae_in(sae_in)
            codes = self.encode_codes(centred, dictionary)
            scale = inverse_norm(centred + self.b_dec)
            residual = centred - decode_codes(dictionary, codes.indices, codes.values)
            direction, moves = take_over(
                dead | duplicates(dictionary, self.signed),
                residual * scale,
                codes.indices,
                codes.values * scale,
                dictionary,
                self.signed,
            )
        move_latents(moves, direction, self.W_enc, self.W_dec)
        return moves

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Let dead latents reconstruct what the code left over, on the unit-norm scale.

        They are encoded anew, linearly for every variant: a loss that read `hidden_pre`, or the
        multistep encoder's last step, would send a dense gradient through the encoder.
        """
        loss = sae_out.new_zeros(())
        dead = step_input.dead_neuron_mask
        if dead is not None and self._slots.n > 0 and self.cfg.aux_loss_coefficient > 0:
            k_aux = min(max(self.cfg.d_in // 2, 1), self.cfg.d_sae)
            latents = first_dead(dead, self._slots.n)
            linear_pre = self.process_sae_in(step_input.sae_in) @ self.W_enc[:, latents]
            acts = dead_latent_acts(linear_pre, dead[latents], k_aux, self.signed)
            recons = acts @ torch.nn.functional.normalize(self.W_dec[latents], dim=-1)
            to_unit_norm = inverse_norm(step_input.sae_in)
            residual = (step_input.sae_in - sae_out).detach() * to_unit_norm
            if self.cfg.normalize_activations == "constant_norm_rescale":
                to_unit_norm = self.cfg.d_in**-0.5
            share = (dead.sum() / k_aux).clamp(max=1)
            error = (recons * to_unit_norm - residual).pow(2).sum(-1).mean()
            loss = self.cfg.aux_loss_coefficient * share * error
        return {"auxiliary_reconstruction_loss": loss}

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if "b_enc" in state_dict and state_dict["b_enc"].any():
            raise InputError(
                f"the checkpoint has an encoder bias (b_enc), and {self.cfg.architecture()!r} "
                "trains without one: training would ignore it, and encoding would not. Set it to "
                "0, or train a stock architecture further"
            )
        self._bias_is_set = True

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        self._watch.check(wait=True)
        return super().save_model(path)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        self._watch.check(wait=True)
        return super().save_inference_model(path)
