"""What all of SAEBench's evals share, and how one is run.

What an eval computes of the model alone (activations, probes on them) is made once and shared by
all SAEs. SAEBench draws random numbers while it makes them, so an SAE's figures would otherwise
depend on which SAE came first.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from sae_lens_isae.files import move_files
from sae_lens_isae.progress import progress_bar
from sae_lens_isae.saebench.adapter import SAEBenchAdapter
from sae_lens_isae.saebench.data import BenchData, BenchSettings
from sae_lens_isae.saebench.installed import module
from sae_lens_isae.saebench.upstream import contained, with_model, with_texts

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

    from sae_lens_isae.saebench.autointerp import Judging

_PARTIAL = ".partial"


@dataclass(frozen=True)
class EvalContext:
    """What the evals of all SAEs share."""

    model: HookedRootModule
    model_name: str
    """As a user knows it."""
    model_key: str
    """What SAEBench takes for its name; it names folders with it."""
    device: str
    data: BenchData
    settings: BenchSettings
    artifacts: Path
    """Folder for activations and probes; its name must tell model, data and settings."""
    judging: Judging | None = None
    """Of autointerp."""


def shared_fields(context: EvalContext) -> dict[str, Any]:
    """Of the configs of sparse probing, SCR and TPP."""
    return {
        "model_name": context.model_key,
        "random_seed": context.settings.seed,
        "context_length": context.settings.context_size,
        "sae_batch_size": context.settings.sae_batch_size,
        "llm_batch_size": context.settings.llm_batch_size,
        "llm_dtype": str(next(context.model.parameters()).dtype).removeprefix("torch."),
    }


def run_eval(
    context: EvalContext,
    main: ModuleType,
    config: Any,
    adapter: SAEBenchAdapter,
    name: str,
    kind: str,
    calls: Callable[[], int],
) -> dict[str, Any]:
    """Run sparse probing, SCR or TPP: first what needs no SAE, then the SAE on that."""
    # where SAEBench looks for it
    folder = context.artifacts / kind / context.model_key / adapter.cfg.hook_name
    identity = module("sae_bench.custom_saes.identity_sae").IdentitySAE(
        adapter.cfg.d_in,
        context.model_key,
        adapter.cfg.hook_layer,
        torch.device(context.device),
        next(context.model.parameters()).dtype,
        adapter.cfg.hook_name,
    )

    def make(dataset: str, scratch: Path) -> None:
        changes: dict[str, Any] = {"dataset_names": [dataset]}
        if hasattr(config, "n_values"):
            changes["n_values"] = []
        main.run_eval_single_sae(
            _replaced(config, **changes), identity, context.model, context.device, str(scratch)
        )

    with contained(), with_texts(context.data.texts):
        make_once(folder, "", config.dataset_names, make, f"{kind}: activations, probes")
        with (
            tempfile.TemporaryDirectory() as results,
            with_model(main, context.model),
            progress_bar(total=calls(), desc=f"{kind}: SAE", unit="batch", leave=False) as progress,
        ):
            adapter.progress = progress
            try:
                main.run_eval(
                    config,
                    [(name, adapter)],
                    context.device,
                    results,
                    artifacts_path=str(context.artifacts),
                )
            finally:
                adapter.progress = None
            return only_result(Path(results))


def make_once(
    folder: Path,
    suffix: str,
    datasets: Sequence[str],
    make: Callable[[str, Path], None],
    description: str,
) -> None:
    """Make what is missing of each data set, and give it its place only when it is whole."""
    marks = {name: folder / f"{name.replace('/', '_')}{suffix}.done" for name in datasets}
    missing = [name for name, mark in marks.items() if not mark.exists()]
    scratch = folder / _PARTIAL
    for name in progress_bar(missing, desc=description, unit="data set", leave=False):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        make(name, scratch)
        move_files(scratch, folder)
        marks[name].touch()
    shutil.rmtree(scratch, ignore_errors=True)


def only_result(folder: Path) -> dict[str, Any]:
    """The one result file that an eval wrote."""
    (path,) = folder.rglob("*_eval_results.json")
    return json.loads(path.read_text(encoding="utf-8"))


def _replaced(config: Any, **changes: Any) -> Any:
    return type(config)(**{**config.__dict__, **changes})
