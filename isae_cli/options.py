"""Arguments and options that several commands have."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class TableFormat(str, Enum):
    """Format of tables of latents."""

    PARQUET = "parquet"
    CSV = "csv"


SAES_HELP = "SAEs: folders, release/sae_id, or user/repository/sae_id on the hub."

SAEs = Annotated[list[str], typer.Argument(help=SAES_HELP)]
Activations = Annotated[
    str | None,
    typer.Option(
        help="At the SAEs' hook: a .safetensors or .npy file [..., d_in], a folder of SAELens' "
        "CacheActivationsRunner, or synthetic:NAME,k=5,... (a generator). Without it the model "
        "runs.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="Model that makes the activations.", show_default="in the SAE's metadata"),
]
Text = Annotated[
    str | None,
    typer.Option(help="Data set that it reads.", show_default="in the SAE's metadata"),
]
Samples = Annotated[
    int | None,
    typer.Option(help="At most this many activations.", show_default="the whole file, else 4096"),
]
Logits = Annotated[
    bool,
    typer.Option(
        "--logits",
        help="Load the model to say which tokens every latent promotes, though activations are "
        "given; where the model runs anyway they are said.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where the SAEs (and the model) run.", show_default="cuda where there is one, else cpu"
    ),
]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Table = Annotated[TableFormat, typer.Option(help="Format of the tables of latents.")]
Out = Annotated[Path, typer.Option(help="Folder for the report.")]
Autocast = Annotated[
    bool,
    typer.Option(
        "--autocast",
        help="Run the language model in bfloat16; slow on a CPU without AVX-512.",
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Compare SAEs even if they are for different models or hooks."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let an SAE's config name code that loads its model, and run code that comes with "
        "the model. For SAEs and models that you trust as you trust a program.",
    ),
]
