"""The language model that SAEs were trained on, as their metadata say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sae_lens import SAE

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.identity import model_identity
from sae_lens_isae.inputs.language_models import (
    harmless_model_kwargs,
    load_language_model,
    width_at,
)

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule


def load_shared_model(
    saes: Sequence[SAE[Any]],
    model_name: str | None,
    device: str,
    *,
    trust_remote_code: bool = False,
) -> tuple[SharedModel, HookedRootModule]:
    """The model that SAEs were trained on, and what it is, as their metadata say.

    Args:
        model_name: In place of the one in the metadata.
        trust_remote_code: Let the metadata name code to run, and code that comes with the model
            run.

    Raises:
        InputError: The metadata name several models, or none, or want code to run; or the model
            does not have what an SAE was trained on.
        MissingInputError: The model cannot be loaded.
    """
    shared = find_shared_model(saes, model_name, trust_remote_code=trust_remote_code)
    model = load_language_model(
        shared.name,
        shared.class_name,
        device,
        sorted({str(sae.cfg.metadata.hook_name) for sae in saes}),
        shared.kwargs,
    )
    for sae in saes:
        hook_name, head_index = sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_head_index
        width = width_at(model, str(hook_name), head_index)
        if width != sae.cfg.d_in:
            raise InputError(
                f"an SAE for {hook_name} has d_in {sae.cfg.d_in}, the model has {width} there: "
                f"{shared.name} is not the model that it was trained on (--model)"
            )
    return shared, model


@dataclass(frozen=True)
class SharedModel:
    """What is loaded for one or more SAEs."""

    name: str
    class_name: str
    kwargs: dict[str, Any]

    @cached_property
    def identity(self) -> str:
        """See `identity.model_identity`, which reads a GGUF file as a whole."""
        return model_identity(self.name, self.class_name, self.kwargs)


def find_shared_model(
    saes: Sequence[SAE[Any]], model_name: str | None, *, trust_remote_code: bool = False
) -> SharedModel:
    """Which model `load_shared_model` loads; its errors but those of loading."""
    names = {sae.cfg.metadata.model_name for sae in saes}
    if model_name is None and (len(names) > 1 or None in names):
        raise InputError(
            f"the SAEs' metadata name the models {sorted(map(str, names))}; say which one to run "
            "(--model)"
        )
    metadata = saes[0].cfg.metadata
    kwargs: Any = metadata.model_from_pretrained_kwargs
    return SharedModel(
        model_name or str(metadata.model_name),
        str(metadata.model_class_name or "HookedTransformer"),
        harmless_model_kwargs(kwargs, trust_remote_code=trust_remote_code),
    )
