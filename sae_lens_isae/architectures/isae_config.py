"""The settings of iSAE: `activation` and `arip_weight` tell the variants of the paper apart."""

from dataclasses import dataclass
from typing import Literal, get_args

from sae_lens import AbsTopKSAEConfig, SAEConfig, TopKSAEConfig, TopKTrainingSAEConfig
from typing_extensions import override

from sae_lens_isae.errors import InputError
from sae_lens_isae.losses import LossTermsConfig, check_weight

Activation = Literal["abstopk", "topk"]
Normalization = Literal[
    "none", "expected_average_only_in", "covariance_whitening", "constant_norm_rescale"
]


def check_candidates(candidates: float) -> None:
    """Refuse a multiple of k that leaves fewer than k candidates.

    Raises:
        InputError: It does.
    """
    if not candidates >= 1:
        raise InputError(f"candidates is a multiple of k and must be >= 1, got {candidates}")


def _check_activation(activation: str) -> None:
    if activation not in get_args(Activation):
        raise InputError(
            f"activation must be one of {sorted(get_args(Activation))}, got {activation!r}"
        )


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


@dataclass
class ISAETrainingSAEConfig(TopKTrainingSAEConfig, LossTermsConfig):
    """Train the paper's linear-encoder variants under its recipe.

    TopK is `activation="topk", arip_weight=0`; AbsTopK is `arip_weight=0`; iSAE is the default.
    For activations of a real model set `normalize_activations="expected_average_only_in"`: Adam
    moves the bias by about the learning rate per step regardless of the scale of x, and SAELens
    folds the constant away at the end.
    """

    activation: Activation = "abstopk"
    """Sparsifier: 'abstopk' keeps the k largest magnitudes with sign, 'topk' is the usual one."""
    arip_weight: float = 0.01
    """Weight of the approximate-RIP regulariser; 0 switches it off. The paper's 0.1 costs error and
    agreement, on synthetic data and on a language model."""
    aux_loss_coefficient: float = 1 / 32
    """Weight of the loss that lets dead latents reconstruct the residual (Gao et al.: 1/32)."""
    resample_until: int = 0
    """Until this training step dead latents, and those that repeat another, are placed on
    directions that many residuals share, every `resample_every` steps; 0, the paper's recipe,
    leaves them to the dead-latent loss."""
    resample_every: int = 100
    """Steps between two resamplings."""
    average_from: int = 0
    """The first training step whose weights are averaged, see `average_until`."""
    average_until: int = 0
    """The number of training steps of a run at whose end the weights become their mean over the
    steps since `average_from`, before the last one; 0: they do not. Averaged over the last third of
    a run, seeds agree better on their supports, at the same error."""
    cuda_graph: bool = True
    """On a CUDA device, record the step once and replay it: the host's launches are what a step of
    moderate size waits for. Steps with hooks, with large batches or dictionaries, or under
    torch.compile are not recorded."""
    fused_adam: bool = True
    """On a CUDA device, let the Adam that trains this SAE update all weights in one kernel, unless
    `foreach` or `fused` was set by hand. The update is the same up to rounding."""
    decoder_init_norm: float | None = 1.0
    """Norm of the atoms at the start; the recipe keeps them at 1 and accepts nothing else."""
    normalize_activations: Normalization = "none"  # pyright: ignore[reportIncompatibleVariableOverride]
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
        if not 0 <= self.average_from <= max(0, self.average_until - 1):
            raise InputError(
                f"average_from must be >= 0 and below average_until, got {self.average_from} and "
                f"{self.average_until}"
            )
        if self.average_until and self.resample_until > self.average_from:
            raise InputError(
                f"resample_until ({self.resample_until}) must not exceed average_from "
                f"({self.average_from}): a latent that moves has no mean"
            )
        if self.normalize_activations not in get_args(Normalization):
            raise InputError(
                f"normalize_activations must be one of {list(get_args(Normalization))}, got "
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
