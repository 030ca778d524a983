"""Where and when a figure was made; every result file carries it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import sae_lens_isae
from sae_lens_isae.files import write_whole

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("sae-lens", "transformer-lens", "torch", "numpy", "scipy")


def provenance() -> dict[str, Any]:
    """Device, versions, command and date."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": gpu
        or f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "versions": {
            # a checkout on the path is not an installed package
            "sae-lens-isae": sae_lens_isae.__version__,
            **{name: version(name) for name in _PACKAGES},
        },
        "command": shlex.join(["python", *sys.argv]),
        "date": date.today().isoformat(),
    }


def write_result(name: str, result: dict[str, Any]) -> None:
    """Print a result and keep it under benchmarks/results."""
    print(keep_result(name, result))


def keep_result(name: str, result: dict[str, Any]) -> str:
    """Keep a result under benchmarks/results, whole or not at all, and return its text."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"provenance": provenance(), **result}, indent=2)
    write_whole(RESULTS / f"{name}.json", lambda scratch: scratch.write_text(text + "\n"))
    return text
