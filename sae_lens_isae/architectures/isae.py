"""iSAE: TopK, AbsTopK and AbsTopK + aRIP under one recipe (Nelson et al. 2026, sections 3.2, 3.3).

The exported SAE is SAELens' own `topk` or `abstopk` and needs nothing from this package.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from sae_lens import TopKSAE, TopKTrainingSAE
from sae_lens.saes.abstopk_sae import AbsTopK
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopK
from torch.nn.functional import normalize
from typing_extensions import override

from sae_lens_isae.architectures.averaging import WeightAverage
from sae_lens_isae.architectures.dead_latents import DeadLatentSlots, dead_latent_loss
from sae_lens_isae.architectures.isae_config import ISAESAEConfig, ISAETrainingSAEConfig
from sae_lens_isae.architectures.non_finite import NonFiniteWatch
from sae_lens_isae.architectures.recipe import (
    geometric_median,
    inverse_norm,
    unit_norm_mse,
)
from sae_lens_isae.architectures.resampling import choose_moves, duplicates, move_latents
from sae_lens_isae.architectures.step import StepInputs, StepOutputs
from sae_lens_isae.distributed import joined, of_first_rank
from sae_lens_isae.errors import InputError
from sae_lens_isae.losses import LOSS_TERMS, LossTermsMixin, StepContext, drop_training_state
from sae_lens_isae.ops.compiling import not_compiled
from sae_lens_isae.ops.graphs import ReplayedFunction
from sae_lens_isae.ops.multistep import EncodedCodes, encode_codes
from sae_lens_isae.ops.optimizer import OptimizerChanges, forget_moments, fuse_adam
from sae_lens_isae.ops.sparse import decode_codes, stored_by_latent, to_dense
from sae_lens_isae.ops.unit_norm import unit_norm_rows

_ACTIVATIONS: dict[str, type[TopK] | type[AbsTopK]] = {"abstopk": AbsTopK, "topk": TopK}
_GRAPHED_UP_TO = 1 << 27
"""Batch size times d_sae up to which launches take longer than the work; a graph keeps the memory
of a step for itself."""


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


class ISAETrainingSAE(LossTermsMixin, TopKTrainingSAE):
    """Training SAE of the paper's recipe.

    SAELens calls `training_forward_pass` once per step. It calls `begin_step`, which does what the
    trainer has no hook for, and `train_step`, which computes the losses.
    """

    cfg: ISAETrainingSAEConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, cfg: ISAETrainingSAEConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.W_enc.data = stored_by_latent(self.W_enc.data)
        # homogeneity in x - b, and with it the stateless form of the recipe, needs it to stay 0
        self.b_enc.requires_grad_(False)
        self.build_loss_terms(LOSS_TERMS)
        self.weight_average: WeightAverage | None = None
        if cfg.average_until:
            parameters = dict(self.named_parameters())
            self.weight_average = WeightAverage(parameters, cfg.average_from, cfg.average_until)
        self._bias_is_set = False
        self._optimizer_is_known = False
        self._optimizer_changes = OptimizerChanges()
        self._watch = NonFiniteWatch()
        self._slots = DeadLatentSlots()
        self._replayed = ReplayedFunction()

    @override
    def get_activation_fn(self) -> TopK | AbsTopK:
        return _ACTIVATIONS[self.cfg.activation](self.cfg.k)

    @property
    def signed(self) -> bool:
        """Whether latents may fire with either sign."""
        return self.cfg.activation == "abstopk"

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self.begin_step(step_input)
        step = self._run(
            StepInputs(
                sae_in=step_input.sae_in,
                dead_neuron_mask=step_input.dead_neuron_mask,
                coefficients=step_input.coefficients,
                of_terms=self.term_inputs(len(step_input.sae_in)),
            )
        )
        # copies: people keep losses, and the next replay overwrites what this one returned
        loss, values = step.loss.clone(), torch.stack(list(step.losses.values()))
        self._watch.record(loss, step_input.n_training_steps)
        metrics = {}
        if step_input.is_logging_step:
            metrics = self.term_metrics(
                StepContext(
                    sae=self,
                    sae_in=step_input.sae_in,
                    feature_acts=step.feature_acts,
                    hidden_pre=step.hidden_pre,
                    sae_out=step.sae_out,
                    dictionary=step.dictionary,
                )
            )
        return TrainStepOutput(
            sae_in=step_input.sae_in,
            sae_out=step.sae_out,
            feature_acts=step.feature_acts,
            hidden_pre=step.hidden_pre,
            loss=loss,
            losses=dict(zip(step.losses, values.unbind(), strict=True)),
            metrics=cast(Any, metrics),
        )

    def train_step(self, inputs: StepInputs) -> StepOutputs:
        """One step of training, without the update: centre, encode, decode, losses, terms.

        On a CUDA device this is recorded and replayed: what it does may depend on its inputs, on
        parameters and on `replay_key`, and it must not wait for the device.
        """
        dictionary = unit_norm_rows(self.W_dec)
        centred = self.process_sae_in(inputs.sae_in)

        # what a hook does may be learned
        x_needs_gradient = inputs.sae_in.requires_grad or self.hook_sae_input.has_hooks()
        codes = self.encode_codes(centred, dictionary, None if x_needs_gradient else self.b_dec)
        self.hook_sae_acts_pre(codes.linear_pre)
        feature_acts = to_dense(codes.indices, codes.values, self.cfg.d_sae)

        recons = decode_codes(dictionary, codes.indices, codes.values) + self.b_dec
        recons = self.run_time_activation_norm_fn_out(self.hook_sae_recons(recons))
        sae_out = self.reshape_fn_out(recons, self.d_head)
        feature_acts = self.hook_sae_acts_post(feature_acts)

        losses = {"mse_loss": unit_norm_mse(sae_out, inputs.sae_in)}
        losses |= self.code_losses(codes, dictionary, centred)
        losses |= self.calculate_aux_loss(
            TrainStepInput(
                sae_in=inputs.sae_in,
                coefficients=inputs.coefficients,
                dead_neuron_mask=inputs.dead_neuron_mask,
                n_training_steps=self.n_steps,
                is_logging_step=False,
            ),
            feature_acts,
            codes.linear_pre,
            sae_out,
        )

        losses |= self.term_losses(
            StepContext(
                sae=self,
                sae_in=inputs.sae_in,
                feature_acts=feature_acts,
                hidden_pre=codes.hidden_pre,
                sae_out=sae_out,
                dictionary=dictionary,
                ranked=codes.ranked,
            ),
            inputs.of_terms,
        )
        return StepOutputs(
            loss=torch.stack(list(losses.values())).sum(),
            losses={name: loss.detach() for name, loss in losses.items()},
            feature_acts=feature_acts.detach(),
            hidden_pre=codes.hidden_pre.detach(),
            sae_out=sae_out.detach(),
            dictionary=dictionary.detach(),
        )

    def encode_codes(
        self,
        centred: Float[torch.Tensor, "batch d_in"],
        dictionary: Float[torch.Tensor, "d_sae d_in"],  # noqa: ARG002
        bias: Float[torch.Tensor, " d_in"] | None = None,
    ) -> EncodedCodes:
        """Encode for training: codes as indices and values, with a backward pass on supports.

        Args:
            centred: x - b.
            dictionary: The atoms, with unit norm.
            bias: b, where x needs no gradient. An encoder may give b its gradient directly or, as
                without it, through `centred`.
        """
        k = int(self.cfg.k)
        return encode_codes(centred, self.W_enc, k, self.signed, n_ranked=self.n_ranked, bias=bias)

    def code_losses(
        self,
        codes: EncodedCodes,  # noqa: ARG002
        dictionary: Float[torch.Tensor, "d_sae d_in"],  # noqa: ARG002
        centred: Float[torch.Tensor, "batch d_in"],  # noqa: ARG002
    ) -> dict[str, torch.Tensor]:
        """Losses of the encoder's own, by name; it has none where it is trained by the error."""
        return {}

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The loss of dead latents, see `dead_latents`.

        An override may read what `StepInputs` holds. `n_training_steps` stands still where the step
        is replayed: a number that changes goes through a coefficient or a loss term.
        """
        sae_in, dead = step_input.sae_in, step_input.dead_neuron_mask
        if dead is None or self._slots.n == 0 or self.cfg.aux_loss_coefficient == 0:
            return {"auxiliary_reconstruction_loss": sae_out.new_zeros(())}
        to_unit_norm = inverse_norm(sae_in)
        residual = (sae_in - sae_out).detach() * to_unit_norm
        run_time = self.cfg.normalize_activations == "constant_norm_rescale"
        loss = dead_latent_loss(
            residual,
            self.process_sae_in(sae_in),
            self.cfg.d_in**-0.5 if run_time else to_unit_norm,
            dead,
            self._slots.n,
            self.W_enc,
            self.W_dec,
            self.signed,
        )
        return {"auxiliary_reconstruction_loss": self.cfg.aux_loss_coefficient * loss}

    @override
    def encode_again(self, ctx: StepContext) -> Float[torch.Tensor, "batch d_sae"]:
        codes = self.encode_codes(self.process_sae_in(ctx.sae_out), ctx.dictionary)
        return to_dense(codes.indices, codes.values, self.cfg.d_sae)

    @override
    def sample_weights(
        self, sae_in: Float[torch.Tensor, "batch d_in"]
    ) -> Float[torch.Tensor, "batch 1"]:
        return inverse_norm(sae_in).square()

    # steps are counted here, and torch.compile would recompile for every count
    @not_compiled
    def begin_step(self, step_input: TrainStepInput) -> None:
        """What comes before a step: checks, the start of the bias, resampling, the number of dead
        latents, the terms' look at the first batch."""
        self._watch.check()
        self._optimizer_changes.tidy_up()
        if step_input.sae_in.shape[1:] != (self.cfg.d_in,):
            raise InputError(
                f"d_in is {self.cfg.d_in}, but the activations have shape "
                f"{tuple(step_input.sae_in.shape)} instead of [batch, d_in]"
            )
        if not self.cfg.rescale_acts_by_decoder_norm:
            # a whitening was folded into the weights, at the end of a run: the optimizer is another
            self.set_unit_norm_atoms()
            self._optimizer_is_known = False
        if not self._bias_is_set:
            self.initialize_bias(joined(step_input.sae_in))
        if not self._optimizer_is_known:
            if self.cfg.fused_adam and self.W_dec.is_cuda:
                self._optimizer_changes.request(self.W_dec, fuse_adam)
            self._optimizer_is_known = True
        dead = step_input.dead_neuron_mask
        due = 0 < self.n_steps <= self.cfg.resample_until
        if due and dead is not None and self.n_steps % self.cfg.resample_every == 0:
            self.resample(dead, joined(step_input.sae_in))
        if dead is not None:
            self._slots.update(dead)
        if self.weight_average is not None:
            self.weight_average.before_step(self, self.n_steps)
        self.n_steps += 1
        self.prepare_terms(step_input.sae_in)

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

    @torch.no_grad()
    def resample(
        self, dead: Bool[torch.Tensor, " d_sae"], sae_in: Float[torch.Tensor, "batch d_in"]
    ) -> Bool[torch.Tensor, " d_sae"]:
        """Move dead and duplicate latents to what many residuals of `sae_in` share.

        Moved latents start with fresh moments in the optimizer.

        Returns:
            Which latents moved.
        """
        # seldom done, so in full precision
        with torch.autocast(sae_in.device.type, enabled=False):
            dictionary = normalize(self.W_dec, dim=-1)
            centred = self.process_sae_in(sae_in)
            codes = self.encode_codes(centred, dictionary)
            residual = centred - decode_codes(dictionary, codes.indices, codes.values)
            scale = inverse_norm(centred + self.b_dec)
            direction, moved = choose_moves(
                dead | duplicates(dictionary, self.signed),
                residual * scale,
                codes.indices,
                codes.values * scale,
                dictionary,
                self.signed,
            )
        direction, moved = of_first_rank(direction), of_first_rank(moved)
        move_latents(moved, direction, self.W_enc, self.W_dec)
        entries = [(self.W_dec, moved[:, None]), (self.W_enc, moved)]
        self._optimizer_changes.request(self.W_dec, forget_moments(entries))
        return moved

    @not_compiled
    def _run(self, inputs: StepInputs) -> StepOutputs:
        hooked = any(point.has_hooks() for point in self.hook_dict.values())
        large = len(inputs.sae_in) * self.cfg.d_sae > _GRAPHED_UP_TO
        if hooked or large or not self.cfg.cuda_graph:
            return self.train_step(inputs)
        return self._replayed(self.train_step, inputs, self, self.replay_key())

    def replay_key(self) -> Hashable:
        """What the control flow of `train_step` depends on besides its inputs."""
        return self._slots.n

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if "b_enc" in state_dict and state_dict["b_enc"].any():
            raise InputError(
                f"the checkpoint has an encoder bias (b_enc), and {self.cfg.architecture()!r} "
                "trains without one: training would ignore it, and encoding would not. Set it to "
                "0, or train a stock architecture further"
            )
        for key in [key for key in state_dict if key.rpartition(".")[2] == "W_enc"]:
            state_dict[key] = stored_by_latent(state_dict[key])
        self._bias_is_set = True

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        for key, tensor in state_dict.items():
            # safetensors takes no other
            state_dict[key] = tensor.contiguous()

    @override
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        self._watch.check(wait=True)
        return super().save_model(path)

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        self._watch.check(wait=True)
        if self.weight_average is not None:
            self.weight_average.check_export(self.n_steps)
        return super().save_inference_model(path)
