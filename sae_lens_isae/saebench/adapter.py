"""An SAE of SAELens as SAEBench's evals expect it, with signed codes as they are or unfolded.

Several evals of SAEBench assume codes that are zero or positive: TPP credits a latent for a class
only where it fires positively on it, densities count `> 0`. AbsTopK codes have signs; they can be
presented as those of the SAE's non-negative form (`inputs.signs`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_isae._private import writes_to
from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.language_models import hook_layer
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.inputs.signs import CodeForm, has_signed_codes, unfold_signs


@dataclass
class SAEBenchConfig:
    """The fields of an SAE's config that SAEBench reads, those of SAELens' metadata among them."""

    model_name: str
    d_in: int
    d_sae: int
    hook_name: str
    hook_layer: int
    context_size: int | None
    prepend_bos: bool
    architecture: str
    architecture_str: str
    dtype: str
    device: str
    hook_head_index: int | None = None
    normalize_activations: str = "none"
    apply_b_dec_to_input: bool = True
    dataset_trust_remote_code: bool | None = None
    exclude_special_tokens: bool = False
    model_from_pretrained_kwargs: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What SAEBench writes to its result files as `sae_cfg_dict`."""
        return asdict(self)


class SAEBenchAdapter:
    """Encoding and decoding for SAEBench, around any SAE of SAELens.

    Atoms have unit norm, as SAEBench makes those of pretrained SAEs, and codes are in their units.
    Decoding a batch several times is safe, and an all-zero token (SAEBench masks padding so) has
    a finite code, also where SAELens normalises at run time. Weights are in float32, codes and
    reconstructions in the type of the activations.

    Args:
        form: `non_negative` unfolds signed codes; an SAE without signs has one form only.

    Raises:
        InputError: The SAE does not rebuild its input, or does not name its hook or model.
    """

    def __init__(
        self,
        sae: SAE[Any],
        form: CodeForm = "non_negative",
        *,
        model_name: str | None = None,
    ) -> None:
        self._linear = LinearSAE(sae)
        self._unfolded = form == "non_negative" and has_signed_codes(self._linear)
        self.progress: tqdm[Any] | None = None
        """Advances by one at every call of `encode`."""
        self.device = sae.device
        self.dtype = torch.float32
        atoms = self._linear.atoms
        self.W_dec: Float[torch.Tensor, "latents d_in"] = (
            torch.cat([atoms, -atoms]) if self._unfolded else atoms
        )
        # matching pursuit has no encoder but its atoms
        encoder = getattr(sae, "W_enc", self._linear.atoms.T).detach().float()
        self.W_enc: Float[torch.Tensor, "d_in latents"] = (
            torch.cat([encoder, -encoder], dim=1) if self._unfolded else encoder
        )
        # SAEBench takes zeros where an SAE has none
        bias = getattr(sae, "b_mag", getattr(sae, "b_enc", None))
        if bias is not None:
            bias = bias.detach().float()
            self.b_enc = torch.cat([bias, -bias]) if self._unfolded else bias
        # the decoder's bias; with run-time normalisation it depends on the activations
        self._offset = self._linear.encode(torch.zeros(1, self._linear.d_in)).offset
        self._last: _Distinct | None = None
        self._batches: dict[Any, _Kept] = {}
        self.cfg = _config(sae, len(self.W_dec), model_name)

    @property
    def form(self) -> CodeForm:
        """`non_negative` where every latent of the SAE is here twice."""
        return "non_negative" if self._unfolded else "as_is"

    @torch.no_grad()
    def encode(self, x: Float[torch.Tensor, "*tokens d_in"]) -> Float[torch.Tensor, "*tokens f"]:
        """Codes of activations, [.., d_sae], or unfolded [.., 2 d_sae]."""
        if self.progress is not None:
            self.progress.update()
        kept = self._kept(x)
        self._last = kept.distinct
        if self._linear.normalization in ("constant_norm_rescale", "layer_norm"):
            self._offset = kept.offset
        z = kept.code.to_dense()
        return z[kept.distinct.place].view(*x.shape[:-1], -1)

    def _kept(self, x: Float[torch.Tensor, "*tokens d_in"]) -> _Kept:
        version = writes_to(x)
        key = (x.data_ptr(), x.shape, x.stride(), version)
        kept = self._batches.pop(key, None)
        if kept is None or version is None:
            flat = x.reshape(-1, x.shape[-1])
            distinct = _Distinct.of(flat)
            with torch.autocast(x.device.type, enabled=False):
                code = self._linear.encode(flat[distinct.rows])
            z = unfold_signs(code.codes) if self._unfolded else code.codes
            kept = _Kept(x, distinct, z.to(x.dtype).to_sparse(), code.offset)
        self._batches[key] = kept
        while len(self._batches) > _BATCHES:
            del self._batches[next(iter(self._batches))]
        return kept

    @torch.no_grad()
    def decode(self, z: Float[torch.Tensor, "*tokens f"]) -> Float[torch.Tensor, "*tokens d_in"]:
        """Rebuild activations, from codes of the batch that was encoded last."""
        flat = z.reshape(-1, z.shape[-1])
        # ablated codes may still be equal at all padding; otherwise every token is decoded
        alike = self._last if self._last is not None and self._last.holds(flat) else None
        some = (flat if alike is None else flat[alike.rows]).to(self._linear.device).float()
        if self._unfolded:
            positive, negative = some.chunk(2, dim=-1)
            some = positive - negative
        offset = self._offset
        if len(offset) > 1:
            if self._last is None or len(self._last.place) != len(flat):
                raise InputError(
                    f"{len(flat)} codes of an SAE that normalises at run time, but another number "
                    "of activations was encoded last; decode the batch encoded last"
                )
            offset = offset if alike is not None else offset[self._last.place]
        with torch.autocast(z.device.type, enabled=False):
            x = self._linear.decode(some, offset)
        x = x.to(z.dtype)
        return (x if alike is None else x[alike.place]).view(*z.shape[:-1], -1)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> SAEBenchAdapter:
        """Itself: activations of any type are taken. Raises InputError for another device."""
        del dtype
        if device is not None and torch.device(device).type != torch.device(self.device).type:
            raise InputError(f"this SAE is on {self.device}, load it on {device}")
        return self


_BATCHES = 32
"""Batches whose codes are kept, the last ones used: SCR and TPP encode a few again and again, once
for every number of latents that they ablate."""


class _Kept(NamedTuple):
    """What was encoded, and its code. While the batch is held here, no other has its address."""

    batch: Float[torch.Tensor, "*tokens d_in"]
    distinct: _Distinct
    code: Float[torch.Tensor, "distinct f"]
    """Sparse, and made dense for every call, because SAEBench ablates in place."""
    offset: Float[torch.Tensor, "#distinct d_in"]


class _Distinct(NamedTuple):
    """The tokens of a batch, all masked ones (zero vectors) as one: SAEBench pads every text to the
    full context, and most of a short text's tokens are padding."""

    rows: Int[torch.Tensor, " distinct"]
    place: Int[torch.Tensor, " tokens"]
    """Where each token is among `rows`."""
    masked: Int[torch.Tensor, " masked"]

    @classmethod
    def of(cls, x: Float[torch.Tensor, "tokens d_in"]) -> _Distinct:
        zero = (x == 0).all(-1)
        masked = zero.nonzero()[:, 0]
        first = ~zero
        first[masked[:1]] = True
        place = first.cumsum(0) - 1
        place[masked] = place[masked[:1]]
        return cls(first.nonzero()[:, 0], place, masked)

    def holds(self, z: Float[torch.Tensor, "tokens f"]) -> bool:
        """Whether codes of so many tokens are equal wherever the batch was masked."""
        if len(z) != len(self.place) or len(self.masked) < 2:
            return False
        return bool((z[self.masked] == z[self.masked[0]]).all())


def _config(sae: SAE[Any], n_latents: int, model_name: str | None) -> SAEBenchConfig:
    metadata = sae.cfg.metadata
    hook_name = metadata.hook_name
    model_name = model_name or metadata.model_name
    if hook_name is None:
        raise InputError("the SAE's metadata names no hook (hook_name), so it cannot be evaluated")
    if model_name is None:
        raise InputError("the SAE's metadata names no model; say which one it is for (--model)")
    return SAEBenchConfig(
        model_name=model_name,
        d_in=sae.cfg.d_in,
        d_sae=n_latents,
        hook_name=hook_name,
        hook_layer=hook_layer(hook_name),
        hook_head_index=metadata.hook_head_index,
        context_size=metadata.context_size,
        prepend_bos=metadata.prepend_bos is not False,
        architecture=sae.cfg.architecture(),
        architecture_str=sae.cfg.architecture(),
        dtype="float32",
        device=str(sae.device),
    )
