"""What `isae pairwise`, `audit`, `recode` and `bench` do: open what was named, measure, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from sae_lens import SAE
from transformers import set_seed

from sae_lens_isae.bench import RESULT_ENDING, BenchInputs, BenchResult, SizeRequest, run_evals
from sae_lens_isae.errors import InputError
from sae_lens_isae.files import output_folder, write_json, write_whole
from sae_lens_isae.identifiability.activations import (
    ActivationSource,
    as_source,
    from_model,
    open_activations,
)
from sae_lens_isae.identifiability.audit import Audit, audit_together, audits_to_dict
from sae_lens_isae.identifiability.comparable import check_comparable
from sae_lens_isae.identifiability.loading import (
    labels,
    load_pretrained,
    load_sae,
    load_shared_model,
)
from sae_lens_isae.identifiability.pairwise import (
    SCHEMA,
    PairwiseReport,
    check_settings,
    pairwise_identifiability,
)
from sae_lens_isae.recoding import (
    Prompt,
    PromptedModel,
    RecodeSettings,
    RecodingReport,
    load_prompts,
    recode,
)
from sae_lens_isae.recoding.prompts import DEFAULT_PROMPTS
from sae_lens_isae.report.audit_page import write_audit_page
from sae_lens_isae.report.bench_page import write_bench_page
from sae_lens_isae.report.pairwise_page import write_pairwise_page
from sae_lens_isae.report.recode_page import write_recode_page
from sae_lens_isae.saebench.plots import plot_with_saebench
from sae_lens_isae.sources import check_device, check_seed

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
    force: bool = False
    """Compare SAEs for different models or hooks all the same."""
    trust_remote_code: bool = False
    """Let an SAE's config name code that loads its model."""

    def open(self) -> tuple[dict[str, SAE[Any]], ActivationSource]:
        """Load the SAEs, by labels that tell them apart, and prepare the activations.

        Raises:
            InputError: Something cannot be loaded or does not go together; the message says what.
        """
        _check(self.n_samples, self.device)
        check_seed(self.seed)
        set_seed(self.seed)
        names = labels(self.saes)
        saes = {
            label: load_sae(name, self.device) for label, name in zip(names, self.saes, strict=True)
        }
        # before a model is loaded
        check_comparable(saes, force=self.force)
        first = next(iter(saes.values()))
        if self.activations is not None:
            hook = first.cfg.metadata.hook_name
            return saes, open_activations(self.activations, self.n_samples, hook)
        return saes, from_model(
            first,
            self.n_samples,
            model_name=self.model,
            text=self.text,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True)
class RecodeInputs:
    """SAEs and prompts or activations, as a user names them."""

    saes: list[str]
    release: str | None = None
    sae_ids: list[str] = field(default_factory=list)
    """Of `release`, beside `saes`."""
    prompts: Path | None = None
    """CSV file; by default the facts that come with the package."""
    activations: str | None = None
    """Instead of prompts, as for `Inputs`."""
    model: str | None = None
    """The model that reads the prompts; by default the one in the SAEs' metadata."""
    n_samples: int | None = None
    """At most this many activations, or prompts."""
    autocast: bool = False
    """Run the language model in bfloat16."""
    device: str = "cpu"
    force: bool = False
    """Code one file of activations with SAEs for different models or hooks all the same."""
    trust_remote_code: bool = False
    """Let an SAE's config name code that loads its model."""

    def open(self) -> tuple[dict[str, SAE[Any]], torch.Tensor | PromptedModel, str]:
        """Load the SAEs, and activations or a model with prompts; say in words what these are.

        Raises:
            InputError: Something cannot be loaded; the message says what.
        """
        _check(self.n_samples, self.device)
        if (self.release is None) != (not self.sae_ids):
            raise InputError("--release and --sae-id belong together")
        if self.activations is not None and self.prompts is not None:
            raise InputError("give prompts or activations, not both")
        pretrained = [f"{self.release}/{sae_id}" for sae_id in self.sae_ids]
        if not self.saes and not pretrained:
            raise InputError("no SAE was named: give folders, or --release and --sae-id")
        # read before anything large is loaded
        prompts = None
        if self.activations is None:
            prompts = load_prompts(self.prompts or DEFAULT_PROMPTS)[: self.n_samples]
        loaded = [load_sae(name, self.device) for name in self.saes]
        loaded += [load_pretrained(str(self.release), i, self.device) for i in self.sae_ids]
        saes = dict(zip(labels([*self.saes, *pretrained]), loaded, strict=True))
        if prompts is None:
            check_comparable(saes, force=self.force)
            hook = loaded[0].cfg.metadata.hook_name
            source = as_source(
                open_activations(str(self.activations), self.n_samples, hook), loaded[0].cfg.d_in
            )
            return saes, torch.cat(list(source.batches(source.n_samples))), source.description
        model_name, prompted = self._prompted(loaded, prompts)
        return saes, prompted, f"last position of {len(prompts)} prompts, {model_name}"

    def _prompted(self, saes: list[SAE[Any]], prompts: list[Prompt]) -> tuple[str, PromptedModel]:
        shared, model = load_shared_model(
            saes, self.model, self.device, trust_remote_code=self.trust_remote_code
        )
        prompted = PromptedModel.from_prompts(
            model,
            prompts,
            prepend_bos=saes[0].cfg.metadata.prepend_bos is not False,
            autocast=self.autocast,
        )
        return shared.name, prompted


def run_pairwise(
    inputs: Inputs,
    out: Path,
    table_format: TableFormat = "parquet",
    *,
    n_oracle_samples: int = 1024,
    oracle_k: int | None = None,
    found_cosine: float = 0.9,
) -> PairwiseReport:
    """Compare SAEs and write `pairwise.json`, `latents.parquet` (or `.csv`), `latents.json` and
    `pairwise.html` to `out`.

    The last three are settings of `pairwise_identifiability`.

    Raises:
        InputError: The input is unusable, or `out` is; the message says why.
    """
    if len(inputs.saes) < 2:
        raise InputError(f"pairwise compares two or more SAEs, got {len(inputs.saes)}")
    check_settings(n_oracle_samples, oracle_k, found_cosine)
    with output_folder(out):
        saes, source = inputs.open()
        report = pairwise_identifiability(
            saes,
            source,
            n_oracle_samples=n_oracle_samples,
            oracle_k=oracle_k,
            found_cosine=found_cosine,
            seed=inputs.seed,
            force=inputs.force,
        )
        write_json(out / "pairwise.json", report.to_dict())
        _write_table(out, report.latents, table_format)
        # pandas writes missing values as null, which plain json does not
        columns = json.loads(str(report.latents.to_json(orient="split", index=False)))
        write_json(out / "latents.json", {"schema": SCHEMA, **columns}, indent=None)
        write_whole(out / "pairwise.html", lambda p: write_pairwise_page(p, report))
    return report


def run_audit(inputs: Inputs, out: Path) -> list[Audit]:
    """Audit SAEs and write `audit.json` and `audit.html` to `out`.

    Raises:
        InputError: The input is unusable, or `out` is; the message says why.
    """
    if not inputs.saes:
        raise InputError("no SAE was named: give folders, or release/sae_id")
    with output_folder(out):
        saes, source = inputs.open()
        audits = audit_together(saes, source, seed=inputs.seed, force=inputs.force)
        write_json(out / "audit.json", audits_to_dict(audits))
        write_whole(out / "audit.html", lambda p: write_audit_page(p, audits))
    return audits


def run_recode(
    inputs: RecodeInputs,
    out: Path,
    settings: RecodeSettings | None = None,
    table_format: TableFormat = "parquet",
) -> RecodingReport:
    """Run the recoding study and write `recode.json`, `latents.parquet` (or `.csv`) and
    `recode.html` to `out`. Finished parts are kept in `out/parts`.

    Raises:
        InputError: The input is unusable, or `out` is; the message says why.
    """
    with output_folder(out):
        saes, activations, description = inputs.open()
        found = recode(saes, activations, settings, cache=out / "parts")
        report = replace(found, activations=description)
        write_json(out / "recode.json", report.to_dict())
        latents = pd.concat(
            [sae.latents.assign(sae=sae.name) for sae in report.saes], ignore_index=True
        )
        _write_table(out, latents, table_format)
        write_whole(out / "recode.html", lambda p: write_recode_page(p, report))
    return report


def run_bench(
    inputs: BenchInputs,
    evals: Sequence[str],
    out: Path,
    sizes: SizeRequest | None = None,
    *,
    resume: bool = False,
) -> list[BenchResult]:
    """Run SAEBench's evals and CE-bench; beside the result files write `bench.json`, all numbers by
    SAE and eval, `bench.html`, and SAEBench's own plots of what can be drawn to `out`.

    Raises:
        InputError: The input is unusable, or `out` is; the message says why.
    """
    with output_folder(out):
        results = run_evals(inputs, evals, out, sizes, resume=resume)
        data = [asdict(r) | {"path": str(r.path.relative_to(out))} for r in results]
        write_json(out / "bench.json", data)
        write_whole(out / "bench.html", lambda p: write_bench_page(p, results))
        files = [r.path.name.removesuffix(RESULT_ENDING) for r in results if r.eval == "core"]
        if files:
            plot_with_saebench(out, files)
    return results


def _check(n_samples: int | None, device: str) -> None:
    if n_samples is not None and n_samples < 1:
        raise InputError(f"samples must be >= 1, got {n_samples}")
    check_device(device)


def _write_table(out: Path, latents: pd.DataFrame, table_format: TableFormat) -> None:
    if table_format == "csv":
        write_whole(out / "latents.csv", lambda p: latents.to_csv(p, index=False))
    else:
        write_whole(out / "latents.parquet", lambda p: latents.to_parquet(p, index=False))
