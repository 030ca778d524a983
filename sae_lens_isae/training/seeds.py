"""What tells the runs of several seeds apart: initial weights and noise, the order of the data."""

from __future__ import annotations

import copy
from typing import Any, Literal, NamedTuple, get_args

from sae_lens import TrainingSAE, TrainingSAEConfig
from sae_lens.registry import get_sae_training_class
from transformers import set_seed

from sae_lens_isae.checks import check_seed
from sae_lens_isae.errors import InputError

Vary = Literal["init", "data", "both"]


class Seeds(NamedTuple):
    """Of one run."""

    init: int
    """Of the initial weights and of the noise in the losses."""
    data: int
    """Of the order of the activations."""


def seeds_of_runs(first: int, n: int, vary: Vary) -> dict[str, Seeds]:
    """Seeds of `n` runs, by the name of the SAE: `seed_0`, `seed_1`, ...

    Raises:
        InputError: There is no such run, or no such thing to vary.

    Examples:
        >>> seeds_of_runs(0, 2, "data")
        {'seed_0': Seeds(init=0, data=0), 'seed_1': Seeds(init=0, data=1)}
    """
    if n < 1:
        raise InputError(f"seeds must be >= 1, got {n}")
    if vary not in get_args(Vary):
        raise InputError(f"vary must be one of {', '.join(get_args(Vary))}, got {vary!r}")
    check_seed(first)
    return {
        f"seed_{seed}": Seeds(
            init=first if vary == "data" else seed, data=first if vary == "init" else seed
        )
        for seed in range(first, first + n)
    }


def seeded_sae(sae_cfg: TrainingSAEConfig, seed: int) -> TrainingSAE[Any]:
    """A training SAE whose initial weights and loss noise depend on `seed`."""
    # deepcopy: the config holds the metadata, which SAELens writes to
    sae_cfg = copy.deepcopy(sae_cfg)
    if hasattr(sae_cfg, "arip_seed"):
        sae_cfg.arip_seed = seed  # pyright: ignore[reportAttributeAccessIssue]
    sae_cfg.metadata.seed = seed
    set_seed(seed)
    return get_sae_training_class(sae_cfg.architecture())[0](sae_cfg)
