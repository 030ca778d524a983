"""Whether SAEBench is installed, and in a version that fits."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from packaging.specifiers import SpecifierSet

from sae_lens_isae.errors import MissingInputError

SAEBENCH_VERSIONS = SpecifierSet(">=0.6.0,<0.7")

INSTALL = (
    "run `make bench` in a checkout of sae-lens-isae, or `pip install 'sae-lens-isae[bench]' && "
    "pip install --no-deps sae-bench==0.6.0 sae-probes==0.4.2`"
)


def saebench_version() -> str:
    """The version that is installed.

    Raises:
        MissingInputError: None is, or one that this package was not tried with.
    """
    try:
        installed = version("sae-bench")
        version("sae-probes")
    except PackageNotFoundError as error:
        raise MissingInputError(f"the package {error.name} is not installed: {INSTALL}") from error
    if not SAEBENCH_VERSIONS.contains(installed, prereleases=True):
        raise MissingInputError(
            f"sae-bench {installed} is installed, {SAEBENCH_VERSIONS} is needed: {INSTALL}"
        )
    return installed


def module(name: str) -> ModuleType:
    """A module of SAEBench or sae-probes.

    Raises:
        MissingInputError: It cannot be imported; the message says what to install.
    """
    saebench_version()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingInputError(f"{name} needs the package {error.name}: {INSTALL}") from error
    except RuntimeError as error:
        if "torchvision" not in str(error):
            raise
        raise MissingInputError(
            f"{name} cannot be imported: the torchvision that is installed does not fit torch. "
            "SAEBench names it and does not use it: `pip uninstall torchvision`"
        ) from error


def probes_folder() -> Path:
    """Where sae-probes keeps its labelled text.

    Raises:
        MissingInputError: It is not installed.
    """
    spec = find_spec("sae_probes")
    if spec is None or not spec.submodule_search_locations:
        raise MissingInputError(f"the package sae-probes is not installed: {INSTALL}")
    return Path(spec.submodule_search_locations[0]) / "data" / "cleaned_data"
