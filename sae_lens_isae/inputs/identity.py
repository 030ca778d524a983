"""What an SAE, a model and a text are: one function each, which every cache and comparison uses.

Equal identities mean equal results. Two SAEs with the same weights differ if they select another
number of latents, or sit at another hook; two models differ if a name now stands for other weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from sae_lens import SAE

from sae_lens_isae.files import file_digest, fingerprint
from sae_lens_isae.inputs.gguf import GGUF_PREFIX, find_gguf
from sae_lens_isae.inputs.texts import PACKAGE_PREFIX

SOURCE_FIELDS = (
    "model_name",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "hook_name",
    "hook_head_index",
    "prepend_bos",
    "context_size",
    "seqpos_slice",
    "exclude_special_tokens",
    "disable_concat_sequences",
    "sequence_separator_token",
)
"""The part of SAELens' metadata that says which activations an SAE is for."""

_PLACE_ONLY = ("device", "metadata")
_READ_WHOLE_UP_TO = 1 << 22


def sae_identity(sae: SAE[Any]) -> str:
    """Of an SAE: weights, config (architecture, k, normalisation) and the activations it is for."""
    config = {k: v for k, v in sae.cfg.to_dict().items() if k not in _PLACE_ONLY}
    metadata = sae.cfg.metadata
    source = {name: metadata[name] for name in SOURCE_FIELDS}
    weights = dict(sorted(sae.state_dict().items()))
    settings = [list(weights), _canonical(config), _canonical(source)]
    return fingerprint(list(weights.values()), settings)


def model_identity(
    name: str, class_name: str | None, from_pretrained_kwargs: Mapping[str, Any] | None
) -> str:
    """Of a language model: its weights as far as they are on this machine, class and options.

    Raises:
        MissingInputError: It is a GGUF file that is not there.
    """
    kwargs = dict(from_pretrained_kwargs or {})
    if name.startswith(GGUF_PREFIX):
        what: object = file_digest(find_gguf(name.removeprefix(GGUF_PREFIX)))
    elif Path(name).exists():
        what = _folder_state(Path(name))
    else:
        config = try_to_load_from_cache(name, "config.json", revision=kwargs.get("revision"))
        # the folder of a cached file is named by its commit
        what = [name, Path(config).parent.name if isinstance(config, str) else None]
    return fingerprint([], [what, class_name or "HookedTransformer", _canonical(kwargs)])


def text_identity(name: str) -> str:
    """Of a text as a user names it: a package's version, a local data set's files, or the name."""
    if name.startswith(PACKAGE_PREFIX):
        package = name.removeprefix(PACKAGE_PREFIX)
        try:
            return fingerprint([], [name, version(package)])
        except PackageNotFoundError:
            return fingerprint([], name)
    return fingerprint([], [name, _folder_state(Path(name)) if Path(name).exists() else None])


def _folder_state(path: Path) -> list[object]:
    """Contents of small files, size and time of large ones, which take long to read."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    state: list[object] = []
    for file in files:
        stat = file.stat()
        small = stat.st_size <= _READ_WHOLE_UP_TO
        contents = file_digest(file) if small else [stat.st_size, stat.st_mtime_ns]
        state.append([str(file.relative_to(path)), contents])
    return state


def _canonical(value: Any) -> Any:
    """One spelling of equal settings: 3.0 is 3, a tuple is a list."""
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
