"""What `isae pairwise` and `isae audit` do: open SAEs and activations, measure, write reports."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from sae_lens import SAE
from transformers import set_seed

from sae_lens_isae.identifiability.activations import (
    ActivationSource,
    from_model,
    open_activations,
)
from sae_lens_isae.identifiability.audit import Audit, audit, audits_to_dict
from sae_lens_isae.identifiability.loading import load_sae
from sae_lens_isae.identifiability.pairwise import (
    SCHEMA,
    PairwiseReport,
    pairwise_identifiability,
)
from sae_lens_isae.report.audit_page import write_audit_page
from sae_lens_isae.report.pairwise_page import write_pairwise_page

TableFormat = Literal["parquet", "csv"]


@dataclass(frozen=True)
class Inputs:
    """SAEs and activations, as a user names them."""

    saes: list[str]
    activations: str | None = None
    """A file, a folder of cached activations, or `synthetic:...`; without it a model runs."""
    model: str | None = None
    """The model that makes the activations; by default the one in the first SAE's metadata."""
    text: str | None = None
    """The text it reads; by default the data set in the first SAE's metadata."""
    n_samples: int | None = None
    """At most this many activations."""
    device: str = "cpu"
    seed: int = 0
    """Of everything random."""

    def open(self) -> tuple[dict[str, SAE[Any]], ActivationSource]:
        """Load the SAEs, by labels that tell them apart, and prepare the activations.

        Raises:
            ValueError, FileNotFoundError: Something cannot be loaded; the message says what.
        """
        if self.n_samples is not None and self.n_samples < 1:
            raise ValueError(f"samples must be >= 1, got {self.n_samples}")
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"device {self.device}: torch sees no CUDA device, use --device cpu")
        set_seed(self.seed)
        names = labels(self.saes)
        saes = {
            label: load_sae(name, self.device) for label, name in zip(names, self.saes, strict=True)
        }
        first = next(iter(saes.values()))
        if self.activations is not None:
            hook = first.cfg.metadata.hook_name
            return saes, open_activations(self.activations, self.n_samples, hook)
        return saes, from_model(
            first, self.n_samples, model_name=self.model, text=self.text, device=self.device
        )


def run_pairwise(
    inputs: Inputs, out: Path, table_format: TableFormat = "parquet", **settings: Any
) -> PairwiseReport:
    """Compare SAEs and write `pairwise.json`, `latents.parquet` (or `.csv`), `latents.json` and
    `pairwise.html` to `out`.

    Args:
        settings: Of `pairwise_identifiability`.

    Raises:
        ValueError, FileNotFoundError: The input is unusable; the message says why.
    """
    if len(inputs.saes) < 2:
        raise ValueError(f"pairwise compares two or more SAEs, got {len(inputs.saes)}")
    saes, source = inputs.open()
    report = pairwise_identifiability(saes, source, seed=inputs.seed, **settings)
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "pairwise.json", lambda p: _dump(p, report.to_dict()))
    if table_format == "csv":
        _write(out / "latents.csv", lambda p: report.latents.to_csv(p, index=False))
    else:
        _write(out / "latents.parquet", lambda p: report.latents.to_parquet(p, index=False))
    # pandas writes missing values as null, which plain json does not
    columns = json.loads(str(report.latents.to_json(orient="split", index=False)))
    _write(out / "latents.json", lambda p: _dump(p, {"schema": SCHEMA, **columns}, indent=None))
    _write(out / "pairwise.html", lambda p: write_pairwise_page(p, report))
    return report


def run_audit(inputs: Inputs, out: Path, **settings: Any) -> list[Audit]:
    """Audit SAEs and write `audit.json` and `audit.html` to `out`.

    Args:
        settings: Of `audit`.

    Raises:
        ValueError, FileNotFoundError: The input is unusable; the message says why.
    """
    saes, source = inputs.open()
    audits = [
        audit(sae, source, name=name, seed=inputs.seed, **settings) for name, sae in saes.items()
    ]
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "audit.json", lambda p: _dump(p, audits_to_dict(audits)))
    _write(out / "audit.html", lambda p: write_audit_page(p, audits))
    return audits


def labels(names: list[str]) -> list[str]:
    """Names without the folder that all of them share, numbered where they repeat."""
    # folders given in both ways, relative and absolute, have no folder in common to leave out
    mixed = len({Path(name).is_absolute() for name in names}) > 1
    several = len(names) > 1 and not mixed
    shared = os.path.commonpath([Path(name).parent for name in names]) if several else ""
    short = [os.path.relpath(name, shared) if shared else name for name in names]
    seen: dict[str, int] = {}
    unique: list[str] = []
    for name in short:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def _dump(path: Path, data: dict[str, Any], indent: int | None = 2) -> None:
    path.write_text(json.dumps(data, indent=indent, allow_nan=False) + "\n", encoding="utf-8")


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that an interruption leaves the old one or none, never half of one."""
    scratch = path.with_name(f".{path.name}.partial")
    try:
        write(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
