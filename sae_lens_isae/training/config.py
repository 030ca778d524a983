"""A runner config of SAELens from a YAML file and command-line flags."""

from __future__ import annotations

import contextlib
import io
import json
import re
import textwrap
from argparse import ArgumentError
from collections.abc import Generator, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, TrainingSAEConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class
from simple_parsing.docstring import get_attribute_docstring

from sae_lens_isae._private import parse_runner_config
from sae_lens_isae.architectures.isae_config import ISAETrainingSAEConfig
from sae_lens_isae.architectures.isae_ls import ISAELSTrainingSAEConfig
from sae_lens_isae.architectures.isae_me import ISAEMETrainingSAEConfig
from sae_lens_isae.errors import InputError, MissingInputError, explained
from sae_lens_isae.losses import LossTermsConfig

_WIDTH = 80
_INDENT = 6 * " "


def load_runner_config(
    config: str | Path | None = None, args: Sequence[str] = ()
) -> LanguageModelSAERunnerConfig[Any]:
    """A SAELens runner config from a YAML file and command-line flags; flags win.

    The file has the fields of `LanguageModelSAERunnerConfig` with a `sae:` mapping (its
    `architecture` picks the class) and optionally a `logger:` mapping. Nothing is logged to Weights
    & Biases unless file or flags say so.

    Args:
        config: A file, or the name of a config that comes with this package.

    Raises:
        InputError: There is no such file, it has an unknown field, or no architecture.
    """
    config = None if config is None else _find_config(config)
    # SAELens' own default is to send every run to Weights & Biases
    flags = ["--log_to_wandb", "False", *(_yaml_to_flags(config) if config else []), *args]
    subject = f"{config} with these flags" if config else "the command line"
    advice = "`isae train --help` lists every flag"
    usage = io.StringIO()
    try:
        with (
            explained(subject, "is refused by SAELens", advice),
            contextlib.redirect_stderr(usage),
            _with_nearest_flags(subject),
        ):
            return parse_runner_config(flags)
    except SystemExit as stop:
        # before Python 3.13 some mistakes end the parser, with the usage of every flag
        if stop.code in (0, None):
            raise
        said = usage.getvalue().strip().rpartition("error: ")[2]
        raise InputError(
            f"{subject} is refused by SAELens: {said}; {_nearest_flags(said) or advice}"
        ) from None


@contextlib.contextmanager
def _with_nearest_flags(subject: str) -> Generator[None]:
    """Say what an unknown flag may have meant; from Python 3.13 on the parser raises for it."""
    try:
        yield
    except ArgumentError as error:
        near = _nearest_flags(str(error))
        if not near:
            raise
        raise InputError(f"{subject} is refused by SAELens: {error}; {near}") from None


def _find_config(config: str | Path) -> Path:
    path = Path(config)
    if path.is_file():
        return path
    # beside the modules where the package is installed, at the root of a checkout
    folders = [Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs"]
    known = {file.stem: file for folder in folders for file in folder.glob("*.yaml")}
    if str(config) in known:
        return known[str(config)]
    near = get_close_matches(path.stem, known, n=3) or sorted(known)
    raise MissingInputError(
        f"there is no config file {config}, and none of that name comes with this package; it has "
        f"{', '.join(near)}"
    )


def help_of_fields() -> str:
    """The fields that this package adds to SAELens' configs, by what they belong to."""
    others = ", ".join(n for n in SAE_TRAINING_CLASS_REGISTRY if n.startswith("regularized_"))
    groups: dict[str, tuple[type[TrainingSAEConfig], ...]] = {
        "Recipe (--architecture isae, isae_me, isae_ls)": (ISAETrainingSAEConfig,),
        "Multistep encoder (--architecture isae_me)": (ISAEMETrainingSAEConfig,),
        "Least squares (--architecture isae_ls)": (ISAELSTrainingSAEConfig,),
        f"Loss terms (--architecture isae, isae_me, isae_ls, {others})": LossTermsConfig.__bases__,
    }
    lines: list[str] = []
    for title, classes in groups.items():
        lines += ["", *textwrap.wrap(f"{title}:", _WIDTH, subsequent_indent="  ")]
        for cls in classes:
            hints = get_type_hints(cls)
            for name in cls.__annotations__:
                lines += _help_of_field(cls, name, get_args(hints[name]))
    return "\n".join([*lines, "", "The flags of SAELens:", ""])


def _help_of_field(
    cls: type[TrainingSAEConfig], name: str, choices: tuple[object, ...]
) -> list[str]:
    named = [str(choice) for choice in choices if isinstance(choice, str)]
    values = f" {'|'.join(named)}" if named else ""
    default = next(field.default for field in fields(cls) if field.name == name)
    said = " ".join(get_attribute_docstring(cls, name).docstring_below.split())
    text = textwrap.fill(said, _WIDTH - len(_INDENT))
    flag = f"--{name}{values} (default: {default})"
    return [
        *textwrap.wrap(flag, _WIDTH, initial_indent="  ", subsequent_indent=_INDENT),
        textwrap.indent(text, _INDENT),
    ]


def _nearest_flags(said: str) -> str:
    """What the flags that SAELens does not know may have meant."""
    known = {f.name for cls in (LanguageModelSAERunnerConfig, LoggingConfig) for f in fields(cls)}
    known |= {f.name for _, cls in SAE_TRAINING_CLASS_REGISTRY.values() for f in fields(cls)}
    known |= {"architecture", "config", "seeds", "vary", "parallel"}
    known |= {"eval_batches", "keep_activations", "activations", "in_memory", "from_disk"}
    hints: list[str] = []
    for flag in re.findall(r"--([\w.-]+)", said.rpartition("unrecognized arguments")[2]):
        near = get_close_matches(flag.replace("-", "_"), sorted(known), n=1)
        hints += [f"did you mean --{name}?" for name in near]
    return " ".join(hints)


def _yaml_to_flags(path: Path) -> list[str]:
    with explained(path, "is not a YAML file"):
        settings: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    sae = settings.get("sae") if isinstance(settings, dict) else None
    if not isinstance(sae, dict) or "architecture" not in sae:
        raise InputError(f"{path}: needs a mapping `sae:` with an `architecture`")
    if not isinstance(settings.get("logger") or {}, dict):
        raise InputError(f"{path}: `logger:` must be a mapping, got {settings['logger']!r}")
    if str(sae["architecture"]) not in SAE_TRAINING_CLASS_REGISTRY:
        raise InputError(
            f"{path}: unknown architecture {sae['architecture']!r}, expected one of "
            f"{sorted(SAE_TRAINING_CLASS_REGISTRY)}"
        )
    top = {k: v for k, v in settings.items() if k not in ("sae", "logger")}
    runner_fields = {f.name for f in fields(LanguageModelSAERunnerConfig)} - {"sae", "logger"}
    sae_class = get_sae_training_class(sae["architecture"])[1]
    flags: list[str] = []
    for prefix, values, known in (
        ("", top, runner_fields),
        ("sae.", sae, {f.name for f in fields(sae_class)} | {"architecture"}),
        ("logger.", settings.get("logger") or {}, {f.name for f in fields(LoggingConfig)}),
    ):
        for name, value in values.items():
            if name not in known:
                near = get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {prefix}{near[0]}?" if near else ""
                raise InputError(f"{path}: unknown field {prefix}{name}{hint}")
            if isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
                raise InputError(f"{path}: {prefix}{name} is a list of lists or mappings")
            # SAELens' parser prefixes the SAE's fields only where the runner has the same name
            clash = prefix == "sae." and name in runner_fields
            flags += _flag(f"sae.{name}" if clash else name, value)
    return flags


def _flag(name: str, value: object) -> list[str]:
    if value is None:
        # an optional flag without value is how the parser spells None
        return [f"--{name}"]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
