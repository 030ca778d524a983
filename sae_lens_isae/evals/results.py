"""The result of one eval of one SAE, and which SAEs belong together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sae_lens_isae.inputs.signs import CodeForm

RESULT_ENDING = "_eval_results.json"
"""Of SAEBench's result files."""


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """One eval of one SAE."""

    sae: str
    eval: str
    form: CodeForm
    path: Path
    metrics: dict[str, float]
    """The numbers of the result file, by SAEBench's names."""


def group_of(name: str) -> str:
    """The name of an SAE without its seed: runs that differ in nothing else are one group."""
    return re.sub(r"[/_\-. ]*seed[_\-]?\d+", "", name)
