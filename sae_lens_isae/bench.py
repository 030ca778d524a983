"""What `isae bench` does: every eval on every SAE, one result file each."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from sae_lens import SAE
from safetensors import SafetensorError
from tqdm.auto import tqdm

from sae_lens_isae.cebench import StoryActivations, StoryPair, ce_bench, load_pairs
from sae_lens_isae.cebench.stories import PUBLISHED
from sae_lens_isae.errors import InputError, disk_is_full, explained
from sae_lens_isae.files import file_stem, fingerprint, write_json
from sae_lens_isae.identifiability.linear_model import LinearModel
from sae_lens_isae.identifiability.loading import (
    SharedModel,
    find_shared_model,
    labels,
    load_sae,
    load_shared_model,
    release_and_id,
)
from sae_lens_isae.identifiability.signs import CodeForm, has_signed_codes
from sae_lens_isae.identity import text_identity
from sae_lens_isae.private_folders import private_folder, secret_folder
from sae_lens_isae.saebench import evals as saebench_evals
from sae_lens_isae.saebench.data import BenchData, BenchSettings, DataSource, choose_data
from sae_lens_isae.saebench.evals import Workplace
from sae_lens_isae.saebench.installed import saebench_version
from sae_lens_isae.saebench.presented import PresentedSAE
from sae_lens_isae.sources import check_device, in_bfloat16

if TYPE_CHECKING:
    pass

SCHEMA = 1

Codes = Literal["auto", "as_is", "non_negative", "both"]

FORMS: dict[str, CodeForm] = {
    "core": "non_negative",
    "sparse_probing": "as_is",
    "scr": "as_is",
    "tpp": "non_negative",
    "sae_probes": "as_is",
    "ce_bench": "non_negative",
}
"""The form in which a signed SAE takes an eval. `as_is` where the eval is right about signs: probes
have weights of both signs, SCR takes the size of an effect. `non_negative` where it is not: core
counts activations above 0 as densities and adds codes up as L1, TPP credits positive ones only,
CE-bench averages."""

FOLDERS = {name: name for name in FORMS} | {"sae_probes": "sparse_probing_sae_probes"}
"""Of the results; SAEBench's own names, by which its plots know them."""

ARTIFACTS = "artifacts"
"""Folder below the results for activations, probes and the log."""

RESULT_ENDING = "_eval_results.json"
"""Of SAEBench's result files."""


@dataclass(frozen=True)
class BenchInputs:
    """SAEs, model and data, as a user names them."""

    saes: list[str]
    model: str | None = None
    """By default the one in the SAEs' metadata."""
    data: DataSource = "auto"
    text: str | None = None
    """For core."""
    probe_data: list[str] = field(default_factory=list[str])
    """For sparse probing: data sets of sae-probes, or CSV files."""
    stories: str | None = None
    """For CE-bench."""
    codes: Codes = "auto"
    autocast: bool = False
    """Run the language model in bfloat16."""
    device: str = "cpu"
    trust_remote_code: bool = False
    """Let an SAE's config name code that loads its model."""


@dataclass(frozen=True)
class BenchResult:
    """One eval of one SAE."""

    sae: str
    eval: str
    form: CodeForm
    path: Path
    metrics: dict[str, float]
    """The numbers of the result file, by SAEBench's names."""


class SizeRequest(NamedTuple):
    """Sizes that a user asked for; None: the default of the data."""

    train_size: int | None = None
    test_size: int | None = None
    core_batches: int | None = None
    seed: int | None = None

    def settings(self, data: BenchData) -> BenchSettings:
        """SAEBench's own settings on its own data, small ones on others, and these changes.

        Raises:
            ValueError: A size is not positive, or larger than a data set for probing.
        """
        asked = {name: value for name, value in self._asdict().items() if value is not None}
        of_saebench = data.probing is None or data.scr is None
        default = BenchSettings.of_saebench() if of_saebench else BenchSettings()
        settings = replace(default, **asked)
        if asked.keys() & {"train_size", "test_size"}:
            data.check_sizes(settings)
        return settings


class _Task(NamedTuple):
    name: str
    """Of the SAE, and of its form where both were asked for."""
    release: tuple[str, str]
    """Release and id of a pretrained SAE; of another what SAEBench has there."""
    sae: SAE[Any]
    eval: str
    form: CodeForm
    path: Path
    mark: str
    """Tells SAE, form, data and settings."""
    depends: dict[str, Any]
    """The data and settings."""


def run_evals(
    inputs: BenchInputs,
    evals: Sequence[str],
    out: Path,
    sizes: SizeRequest | None = None,
    *,
    resume: bool = False,
) -> list[BenchResult]:
    """Run evals on SAEs; results land in `out/<eval>/<SAE>_eval_results.json` one by one.

    Args:
        sizes: In place of SAEBench's own on the hub's data, and of small ones on other data.
        resume: Skip what is finished with the same SAE, data and settings.

    Raises:
        ValueError, FileNotFoundError: The input is unusable; the message says why.
    """
    evals = _checked(evals, inputs)
    names = labels(inputs.saes)
    saes = {n: load_sae(s, inputs.device) for n, s in zip(names, inputs.saes, strict=True)}
    for sae in saes.values():
        # an SAE that cannot be evaluated is refused before anything is
        PresentedSAE(sae, model_name=inputs.model)
    trained_on = next(iter(saes.values())).cfg.metadata.dataset_path
    data = (
        BenchData(text="", sae_probes=None, stories=inputs.stories)
        if set(evals) == {"ce_bench"}
        else choose_data(
            inputs.data, inputs.text, trained_on, tuple(inputs.probe_data), inputs.stories
        )
    )
    settings = (sizes or SizeRequest()).settings(data)
    pairs = load_pairs(data.stories, settings.pairs) if "ce_bench" in evals else []
    shared = find_shared_model(
        list(saes.values()), inputs.model, trust_remote_code=inputs.trust_remote_code
    )
    depends = _dependencies(inputs, shared, data, settings, pairs)
    tasks = _tasks(inputs, saes, evals, out, depends)
    kept = {task.path: _kept(task) if resume else None for task in tasks}
    missing = [task for task in tasks if kept[task.path] is None]
    if not missing:
        return [_result(task, kept[task.path]) for task in tasks]
    artifacts = private_folder(out / ARTIFACTS)
    _, model = load_shared_model(
        list(saes.values()),
        inputs.model,
        inputs.device,
        trust_remote_code=inputs.trust_remote_code,
    )
    tokenizer: Any = model.tokenizer
    if tokenizer.pad_token is None:
        # SAEBench pads every text
        tokenizer.pad_token = tokenizer.eos_token
    work = Workplace(
        model=in_bfloat16(model) if inputs.autocast else model,
        model_name=shared.name,
        model_key=f"model-{shared.identity}",
        device=inputs.device,
        data=data,
        settings=settings,
        artifacts=artifacts,
    )
    with tqdm(missing, desc="Evaluations", unit="eval") as progress:
        for task in progress:
            progress.set_postfix_str(f"{task.eval}: {task.name}")
            kept[task.path] = _finish(task, work, pairs)
    return [_result(task, kept[task.path]) for task in tasks]


def group_of(name: str) -> str:
    """The name of an SAE without its seed: runs that differ in nothing else are one group."""
    return re.sub(r"[/_\-. ]*seed[_\-]?\d+", "", name)


def _checked(evals: Sequence[str], inputs: BenchInputs) -> list[str]:
    unknown = [name for name in evals if name not in FORMS]
    if unknown or not evals:
        raise InputError(f"evals must be of {', '.join(FORMS)}, got {', '.join(unknown) or 'none'}")
    if not inputs.saes:
        raise InputError("no SAE was named: give folders, or release/sae_id")
    if inputs.codes not in ("auto", "as_is", "non_negative", "both"):
        raise InputError(f"codes must be auto, as_is, non_negative or both, got {inputs.codes!r}")
    check_device(inputs.device)
    if set(evals) != {"ce_bench"}:
        saebench_version()
    return [name for name in FORMS if name in evals]


def _dependencies(
    inputs: BenchInputs,
    shared: SharedModel,
    data: BenchData,
    settings: BenchSettings,
    pairs: list[StoryPair],
) -> dict[str, dict[str, Any]]:
    """All that a result depends on beside SAE, eval and form; of CE-bench, and of SAEBench."""
    common = {"schema": SCHEMA, "model": shared.identity, "autocast": inputs.autocast}
    return {
        "ce_bench": {
            **common,
            "stories": data.stories or PUBLISHED,
            "pairs": fingerprint([], pairs),
        },
        "saebench": {
            **common,
            "saebench": saebench_version() if data.text else None,
            "settings": asdict(settings),
            "text": data.text,
            "text_identity": text_identity(data.text) if data.text else None,
            "probing": data.probing,
            "scr": data.scr,
            "tpp": data.tpp,
            "sae_probes": data.sae_probes,
            "sizes": {name: list(sizes) for name, sizes in data.sizes(settings).items()},
            "texts": fingerprint([], {name: repr(texts) for name, texts in data.texts.items()}),
        },
    }


def _tasks(
    inputs: BenchInputs,
    saes: dict[str, SAE[Any]],
    evals: Sequence[str],
    out: Path,
    dependencies: dict[str, dict[str, Any]],
) -> list[_Task]:
    """Eval by eval, for what the SAEs share is made for the first of them."""
    models = {label: LinearModel(sae, label) for label, sae in saes.items()}
    signed = {label: has_signed_codes(model) for label, model in models.items()}
    releases = {
        label: release_and_id(source) or (label, "custom_sae")
        for label, source in zip(saes, inputs.saes, strict=True)
    }
    tasks: list[_Task] = []
    for kind in evals:
        depends = dependencies.get(kind, dependencies["saebench"])
        for label, sae in saes.items():
            for name, form in _forms(label, kind, inputs.codes if signed[label] else "as_is"):
                file = f"{file_stem(name)}{RESULT_ENDING}"
                mark = fingerprint([], [models[label].identity, kind, form, depends])
                path = out / FOLDERS[kind] / file
                tasks.append(_Task(name, releases[label], sae, kind, form, path, mark, depends))
    return tasks


def _forms(label: str, kind: str, codes: Codes) -> list[tuple[str, CodeForm]]:
    if codes == "both":
        forms: tuple[CodeForm, ...] = ("as_is", "non_negative")
        return [(f"{label}+{form}", form) for form in forms]
    return [(label, FORMS[kind] if codes == "auto" else codes)]


def _kept(task: _Task) -> dict[str, Any] | None:
    if not task.path.exists():
        return None
    with explained(task.path, "is damaged", "delete it, or leave out --resume"):
        data = json.loads(task.path.read_text(encoding="utf-8"))
        same = data["sae_cfg_dict"].get("isae_bench", {}).get("mark") == task.mark
        # read here, where a damaged file is named
        return data if same and _metrics(data) else None


def _finish(task: _Task, work: Workplace, pairs: list[StoryPair]) -> dict[str, Any]:
    # a folder of its own for other models, data and settings
    work = replace(work, artifacts=secret_folder(work.artifacts, fingerprint([], task.depends)))
    try:
        data = _evaluate(task, work, pairs)
        data["sae_lens_release_id"], data["sae_lens_id"] = task.release
        data["sae_cfg_dict"] = {
            **task.sae.cfg.to_dict(),
            "isae_bench": {
                "code_form": task.form,
                "mark": task.mark,
                **_alive(task, data),
                **task.depends,
            },
        }
        task.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(task.path, data)
    except (OSError, RuntimeError, SafetensorError) as error:
        if disk_is_full(error):
            raise InputError(
                f"the disk is full ({task.eval} of {task.name}); finished results are in "
                f"{task.path.parent.parent}: free space there and run again with --resume"
            ) from error
        raise
    return data


def _evaluate(task: _Task, work: Workplace, pairs: list[StoryPair]) -> dict[str, Any]:
    if task.eval == "ce_bench":
        return _ce_bench(task, work, pairs)
    presented = PresentedSAE(task.sae, task.form, model_name=work.model_key)
    name = file_stem(task.name)
    log = work.artifacts / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    # SAEBench prints every probe that it trains
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        if task.eval == "core":
            data = saebench_evals.run_core(work, task.sae, presented, name)
        elif task.eval == "sparse_probing":
            data = saebench_evals.run_sparse_probing(work, presented, name)
        elif task.eval == "sae_probes":
            data = saebench_evals.run_sae_probes(work, presented, name)
        else:
            data = saebench_evals.run_scr_or_tpp(work, presented, name, scr=task.eval == "scr")
    # SAEBench builds paths of the model's name, so it was given a key that is one
    data["eval_config"]["model_name"] = work.model_name
    # what SAEBench writes here is the commit of the folder it was started in
    return data | {"sae_bench_commit_hash": f"sae-bench {saebench_version()}"}


def _ce_bench(task: _Task, work: Workplace, pairs: list[StoryPair]) -> dict[str, Any]:
    metadata = task.sae.cfg.metadata
    hook = str(metadata.hook_name)
    prepend_bos = metadata.prepend_bos is not False
    stories = StoryActivations(
        work.model,
        hook,
        pairs,
        work.artifacts / "ce_bench" / fingerprint([], [hook, prepend_bos]),
        prepend_bos=prepend_bos,
    )
    scores = ce_bench(task.sae, stories, task.form)
    return {
        "eval_type_id": "ce_bench",
        "eval_config": {"model_name": work.model_name, "n_pairs": len(pairs)},
        "eval_result_metrics": {
            "ce_bench": {
                "contrastive_score": scores.contrastive,
                "independence_score": scores.independence,
                "sparsity": scores.sparsity,
                "ce_total": scores.total,
            },
            "dictionary_health": asdict(scores.health),
        },
        "eval_result_details": [
            {"subject": subject, "contrastive_score": c, "independence_score": i}
            for subject, (c, i) in scores.by_subject.items()
        ],
    }


def _alive(task: _Task, data: dict[str, Any]) -> dict[str, float]:
    """Core's share of alive latents, of the SAE's own: a latent of the twin is one direction of
    them."""
    if task.eval != "core":
        return {}
    density = torch.tensor([row["feature_density"] for row in data["eval_result_details"]])
    if task.form == "non_negative":
        density = density.view(2, -1).sum(0)
    return {"frac_alive_latents": float((density > 0).float().mean())}


def _result(task: _Task, data: dict[str, Any] | None) -> BenchResult:
    assert data is not None
    return BenchResult(
        sae=task.name, eval=task.eval, form=task.form, path=task.path, metrics=_metrics(data)
    )


def _metrics(data: dict[str, Any]) -> dict[str, float]:
    groups = data["eval_result_metrics"].values()
    metrics = {key: value for group in groups for key, value in group.items() if value is not None}
    alive = data["sae_cfg_dict"]["isae_bench"].get("frac_alive_latents")
    return metrics if alive is None else {**metrics, "frac_alive_latents": alive}
