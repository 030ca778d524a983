"""SAEBench's own evals on a presented SAE: their code, their result files.

What an eval computes of the model alone (activations, probes on them) is made once and shared by
all SAEs, so an SAE's figures do not depend on which SAE came first: SAEBench draws random numbers
while it makes them.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_isae.identifiability.activations import text_store
from sae_lens_isae.saebench.data import BenchData, BenchSettings
from sae_lens_isae.saebench.installed import module, saebench_version
from sae_lens_isae.saebench.presented import PresentedSAE
from sae_lens_isae.saebench.upstream import contained, with_model, with_texts
from sae_lens_isae.sources import context_length

if TYPE_CHECKING:
    from transformer_lens.HookedRootModule import HookedRootModule

_PROMPTS = 16
_SHUFFLE_SEED = 42
_PARTIAL = ".partial"


@dataclass(frozen=True)
class Workplace:
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


def run_core(work: Workplace, sae: SAE[Any], presented: PresentedSAE, name: str) -> dict[str, Any]:
    """CE loss and KL with the SAE in the model, L0, explained variance, densities."""
    core = module("sae_bench.evals.core.main")
    settings, tokenizer = work.settings, _tokenizer(work.model)
    config = core.CoreEvalConfig(
        model_name=work.model_key,
        batch_size_prompts=_PROMPTS,
        n_eval_reconstruction_batches=settings.core_batches,
        n_eval_sparsity_variance_batches=settings.variance_batches,
        exclude_special_tokens_from_reconstruction=True,
        dataset=work.data.text,
        context_size=settings.core_context_size,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
    )
    store = text_store(
        sae, work.model, work.data.text, work.device, context_size=settings.core_context_size
    )
    store.shuffle_input_dataset(seed=_SHUFFLE_SEED)
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    metrics, features = core.run_evals(
        sae=presented,
        activation_store=store,
        model=work.model,
        eval_config=config,
        ignore_tokens={token for token in special if token is not None},
        verbose=True,
    )
    result = {
        "sae_set": name,
        "sae_id": "",
        "eval_cfg": config,
        "metrics": {**metrics, "misc_metrics": core.calculate_misc_metrics(features)},
        "feature_metrics": features,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "core.json"
        core.save_single_eval_result(
            core.replace_nans_with_negative_one(result),
            core.get_eval_uuid(),
            core.get_sae_lens_version(),
            saebench_version(),
            str(path),
            presented,
        )
        return json.loads(path.read_text(encoding="utf-8"))


def run_sparse_probing(work: Workplace, presented: PresentedSAE, name: str) -> dict[str, Any]:
    """Accuracy of probes on a few latents, and on all."""
    main = module("sae_bench.evals.sparse_probing.main")
    settings = work.settings
    info = module("sae_bench.sae_bench_utils.dataset_info")
    config = main.SparseProbingEvalConfig(
        **_shared_fields(work),
        probe_train_set_size=settings.train_size,
        probe_test_set_size=settings.test_size,
        k_values=list(settings.k_values),
        **({} if work.data.probing is None else {"dataset_names": list(work.data.probing)}),
    )
    sizes = work.data.sizes(settings)

    def calls() -> int:
        total = 0
        for dataset in config.dataset_names:
            parts = sizes.get(dataset, (settings.train_size, settings.test_size))
            per_class = sum(math.ceil(part // 2 / settings.sae_batch_size) for part in parts)
            total += per_class * len(info.chosen_classes_per_dataset[dataset])
        return total

    return _run(work, main, config, presented, name, "sparse_probing", calls)


def run_scr_or_tpp(
    work: Workplace, presented: PresentedSAE, name: str, *, scr: bool
) -> dict[str, Any]:
    """Spurious correlation removal, or targeted probe perturbation."""
    main = module("sae_bench.evals.scr_and_tpp.main")
    settings = work.settings
    info = module("sae_bench.sae_bench_utils.dataset_info")
    datasets = work.data.scr if scr else work.data.tpp
    config = main.ScrAndTppEvalConfig(
        **_shared_fields(work),
        perform_scr=scr,
        train_set_size=settings.train_size,
        test_set_size=settings.test_size,
        n_values=[n for n in settings.n_values if n <= len(presented.W_dec)],
        **(
            {}
            if datasets is None
            else {"dataset_names": list(datasets), "column1_vals_lookup": work.data.column1_vals}
        ),
    )
    sizes = work.data.sizes(settings)

    def calls() -> int:
        total = 0
        for dataset in config.dataset_names:
            train, test = sizes.get(dataset, (settings.train_size, settings.test_size))
            trained = 3 if scr else len(info.chosen_classes_per_dataset[dataset])
            tested = 6 if scr else trained
            repeats = len(config.column1_vals_lookup[dataset]) if scr else 1
            effects = trained * math.ceil(train / settings.sae_batch_size)
            ablations = tested * math.ceil(test // 2 / settings.sae_batch_size)
            total += repeats * (effects + trained * len(config.n_values) * ablations)
        return total

    return _run(work, main, config, presented, name, "scr" if scr else "tpp", calls)


def run_sae_probes(work: Workplace, presented: PresentedSAE, name: str) -> dict[str, Any]:
    """The sparse probing of sae-probes, on the last token of each text."""
    main = module("sae_bench.evals.sparse_probing_sae_probes.main")
    probes = module("sae_probes.generate_model_activations")
    hook = presented.cfg.hook_name
    root = work.artifacts / "sae_probes"
    names = main.SparseProbingSaeProbesEvalConfig().dataset_names
    datasets = names if work.data.sae_probes is None else list(work.data.sae_probes)

    def make(dataset: str, folder: Path) -> None:
        with _unchanged_tokenizer(work.model):
            probes.ensure_dataset_activations(
                model_name=work.model_key,
                dataset_short_names=[dataset],
                hook_names=[hook],
                model_cache_path=folder / "activations",
                device=work.device,
                max_seq_len=min(1024, context_length(work.model)),
                model=work.model,
            )
        main.run_baseline_evals(
            model_name=work.model_key,
            hook_name=hook,
            setting="normal",
            method="logreg",
            results_path=folder / "results",
            model_cache_path=folder / "activations",
            datasets=[dataset],
            device=work.device,
            seed=work.settings.seed,
        )

    with contained():
        _make_once(root, hook, datasets, make, "sae-probes' activations")
    with tempfile.TemporaryDirectory() as folder, contained():
        # results of its own: sae-probes takes what lies there for finished
        results = Path(folder) / "results"
        shutil.copytree(root / "results", results)
        config = main.SparseProbingSaeProbesEvalConfig(
            model_name=work.model_key,
            random_seed=work.settings.seed,
            dataset_names=datasets,
            ks=list(work.settings.k_values),
            results_path=str(results),
            model_cache_path=str(root / "activations"),
        )
        main.run_eval(config, [(name, presented)], work.device, folder)
        return _only_result(Path(folder))


def _shared_fields(work: Workplace) -> dict[str, Any]:
    """Of the configs of sparse probing, SCR and TPP."""
    return {
        "model_name": work.model_key,
        "random_seed": work.settings.seed,
        "context_length": work.settings.context_size,
        "sae_batch_size": work.settings.sae_batch_size,
        "llm_batch_size": work.settings.llm_batch_size,
        "llm_dtype": str(next(work.model.parameters()).dtype).removeprefix("torch."),
    }


def _run(
    work: Workplace,
    main: ModuleType,
    config: Any,
    presented: PresentedSAE,
    name: str,
    kind: str,
    calls: Callable[[], int],
) -> dict[str, Any]:
    """Run sparse probing, SCR or TPP: first what needs no SAE, then the SAE on that."""
    # where SAEBench looks for it
    folder = work.artifacts / kind / work.model_key / presented.cfg.hook_name
    identity = module("sae_bench.custom_saes.identity_sae").IdentitySAE(
        presented.cfg.d_in,
        work.model_key,
        presented.cfg.hook_layer,
        torch.device(work.device),
        next(work.model.parameters()).dtype,
        presented.cfg.hook_name,
    )

    def make(dataset: str, scratch: Path) -> None:
        changes: dict[str, Any] = {"dataset_names": [dataset]}
        if hasattr(config, "n_values"):
            changes["n_values"] = []
        main.run_eval_single_sae(
            _replaced(config, **changes), identity, work.model, work.device, str(scratch)
        )

    with contained(), with_texts(work.data.texts):
        _make_once(folder, "", config.dataset_names, make, f"{kind}: activations, probes")
        with (
            tempfile.TemporaryDirectory() as results,
            with_model(main, work.model),
            tqdm(total=calls(), desc=f"{kind}: SAE", unit="batch", leave=False) as progress,
        ):
            presented.progress = progress
            try:
                main.run_eval(
                    config,
                    [(name, presented)],
                    work.device,
                    results,
                    artifacts_path=str(work.artifacts),
                )
            finally:
                presented.progress = None
            return _only_result(Path(results))


def _make_once(
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
    for name in tqdm(missing, desc=description, unit="data set", leave=False):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        make(name, scratch)
        for file in [file for file in scratch.rglob("*") if file.is_file()]:
            place = folder / file.relative_to(scratch)
            place.parent.mkdir(parents=True, exist_ok=True)
            file.replace(place)
        marks[name].touch()
    shutil.rmtree(scratch, ignore_errors=True)


def _only_result(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("*_eval_results.json")
    return json.loads(path.read_text(encoding="utf-8"))


def _replaced(config: Any, **changes: Any) -> Any:
    return type(config)(**{**config.__dict__, **changes})


@contextlib.contextmanager
def _unchanged_tokenizer(model: HookedRootModule) -> Generator[None]:
    """sae-probes turns the tokenizer round, which the evals after it would feel."""
    tokenizer = _tokenizer(model)
    sides = tokenizer.truncation_side, tokenizer.padding_side
    try:
        yield
    finally:
        tokenizer.truncation_side, tokenizer.padding_side = sides


def _tokenizer(model: HookedRootModule) -> Any:
    return model.tokenizer
