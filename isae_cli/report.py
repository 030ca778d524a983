"""`isae report`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from isae_cli.bench import EvalChoice
from isae_cli.output import say_next, say_written
from isae_cli.train import VaryChoice


class RecodeChoice(str, Enum):
    """How much of the recoding study is done."""

    QUICK = "quick"
    FULL = "full"
    NONE = "none"


def report(
    ctx: typer.Context,
    config: Annotated[
        str,
        typer.Argument(
            help="YAML file with the fields of SAELens' runner config, or the name of one that "
            "comes with this package, e.g. smollm2_isae_me.",
        ),
    ],
    seeds: Annotated[int, typer.Option(help="Seeds to train and compare, two or more.")] = 2,
    vary: Annotated[
        VaryChoice, typer.Option(help="What a seed decides, as for `isae train`.")
    ] = VaryChoice.BOTH,
    recode: Annotated[
        RecodeChoice,
        typer.Option(help="How much of the recoding study is done: minutes an SAE, or tens."),
    ] = RecodeChoice.QUICK,
    evals: Annotated[
        list[EvalChoice] | None,
        typer.Option(
            help="Of `isae bench`; several names may follow.",
            show_default="core, where SAEBench is installed",
        ),
    ] = None,
    no_bench: Annotated[bool, typer.Option("--no-bench", help="Evaluate nothing.")] = False,
    wandb: Annotated[
        str | None,
        typer.Option(
            help="Project of Weights & Biases that gets the pages as an artifact.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for SAEs, pages and tables.")] = Path("report"),
) -> None:
    """Train seeds of one recipe and say which of their features to trust.

    Trains, compares the seeds, audits them, recodes them with other algorithms
    and, where SAEBench is installed, evaluates them. One page, `index.html`,
    answers the question and leads to all others. The same command goes on
    where it was stopped.

    Takes every flag of `isae train` that SAELens has; they win over CONFIG.

    \b
    Examples:
      isae report smollm2_isae_me --seeds 2
      isae report my_recipe.yaml --seeds 3 --training_tokens 50000000
    """
    from sae_lens_isae.full_report import (
        STATE_FILENAME,
        ReportPlan,
        full_report,
        log_artifact,
    )
    from sae_lens_isae.training.config import load_runner_config

    chosen = None if evals is None else tuple(name.value for name in evals)
    plan = ReportPlan(
        n_seeds=seeds,
        vary=vary.value,
        recode=recode.value,
        evals=() if no_bench else chosen,
    )
    page = full_report(load_runner_config(config, ctx.args), out, plan, print)
    say_written([page, out / STATE_FILENAME])
    if wandb is not None:
        print(f"logged {log_artifact(out, wandb)}")
    saes = str(out / "saes")
    command = ["isae", "upload", saes, "USER/REPO", "--report", str(out / "pairwise")]
    say_next([*command, "--dry-run", "--out", "release"])
