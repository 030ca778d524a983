"""`isae demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isae_cli.output import say_next, say_written


def demo(
    real: Annotated[
        bool, typer.Option("--real", help="On SmolLM2 activations (needs `make real`).")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Seeds per variant.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for SAEs, table and page.")] = Path("demo"),
) -> None:
    """Compare TopK, AbsTopK, iSAE and iSAE-ME across seeds, in minutes on two
    cores.

    Trains the paper's four variants on synthetic data (or on SmolLM2 with
    --real, and iSAE-LS beside them), prints the columns of the paper's Table 1
    and writes a page with plots. Nothing is downloaded.
    """
    from sae_lens_isae.demo import run_demo, run_real_demo
    from sae_lens_isae.demo_report import PAGE_FILENAME, TABLE_FILENAME
    from sae_lens_isae.training.results import ACTIVATIONS_FILENAME

    out = out / ("real" if real else "synthetic")
    report = (run_real_demo if real else run_demo)(out, seeds)
    report.show()
    say_written([out / PAGE_FILENAME, out / TABLE_FILENAME])
    pair = [str(out / "iSAE-ME" / f"seed_{seed}") for seed in range(2)]
    say_next(["isae", "pairwise", *pair, "--activations", str(out / ACTIVATIONS_FILENAME)])
