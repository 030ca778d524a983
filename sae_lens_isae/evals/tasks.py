"""One task for each eval of each SAE: where its result goes, and whether it is there already."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sae_lens import SAE

from sae_lens_isae.cebench import StoryPair
from sae_lens_isae.cebench.stories import PUBLISHED
from sae_lens_isae.errors import explained
from sae_lens_isae.evals.listed import AUTOINTERP, EVALS
from sae_lens_isae.evals.results import RESULT_ENDING, BenchResult
from sae_lens_isae.files import file_stem, fingerprint
from sae_lens_isae.inputs.identity import text_identity
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.inputs.shared_model import SharedModel
from sae_lens_isae.inputs.signs import CodeForm, has_signed_codes
from sae_lens_isae.saebench.data import BenchData, BenchSettings, DataSource
from sae_lens_isae.saebench.installed import saebench_version
from sae_lens_isae.saebench.judge import Judge

SCHEMA = 1

RequestedForm = Literal["auto", "as_is", "non_negative", "both"]


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What `bench` was asked for, besides SAEs, evals and folder."""

    model: str | None
    data: DataSource
    text: str | None
    probe_data: tuple[str, ...]
    stories: str | None
    codes: RequestedForm
    sizes: dict[str, int]
    autocast: bool
    device: str
    trust_remote_code: bool
    judge: Judge | None
    judged: tuple[int, ...] | None
    """Latents to judge, where they are given."""


class BenchTask(NamedTuple):
    name: str
    """Of the SAE, and of its form where both were asked for."""
    release: tuple[str, str]
    """Release and id of a pretrained SAE; of another what SAEBench has there."""
    sae: SAE[Any]
    eval: str
    form: CodeForm
    path: Path
    mark: str
    """Depends on SAE, form, data and settings."""
    depends: dict[str, Any]
    """The data and settings."""


def dependencies_of(
    request: BenchRequest,
    shared: SharedModel,
    data: BenchData,
    settings: BenchSettings,
    pairs: list[StoryPair],
) -> dict[str, dict[str, Any]]:
    """All that a result depends on beside SAE, eval and form; of CE-bench, and of SAEBench."""
    common = {"schema": SCHEMA, "model": shared.identity, "autocast": request.autocast}
    of_judge = ("judged_latents", "judged_tokens")
    saebench = {
        **common,
        "saebench": saebench_version() if data.text else None,
        "settings": {k: v for k, v in asdict(settings).items() if k not in of_judge},
        "text": data.text,
        "text_identity": text_identity(data.text) if data.text else None,
        "probing": data.probing,
        "scr": data.scr,
        "tpp": data.tpp,
        "sae_probes": data.sae_probes,
        "sizes": {name: list(sizes) for name, sizes in data.sizes(settings).items()},
        "texts": fingerprint([], {name: repr(texts) for name, texts in data.texts.items()}),
    }
    judged = {
        "judge": request.judge and request.judge.name,
        "latents": request.judged and list(request.judged),
        **{name: getattr(settings, name) for name in of_judge},
    }
    return {
        AUTOINTERP: {**saebench, **judged},
        "saebench": saebench,
        "ce_bench": {
            **common,
            "stories": data.stories or PUBLISHED,
            "pairs": fingerprint([], pairs),
        },
    }


def tasks_of(
    request: BenchRequest,
    saes: Mapping[str, SAE[Any]],
    releases: Mapping[str, tuple[str, str] | None],
    evals: Sequence[str],
    out: Path,
    dependencies: dict[str, dict[str, Any]],
) -> list[BenchTask]:
    """Eval by eval: the first SAE makes what all of them share."""
    linear = {label: LinearSAE(sae, label) for label, sae in saes.items()}
    signed = {label: has_signed_codes(of_sae) for label, of_sae in linear.items()}
    tasks: list[BenchTask] = []
    for name in evals:
        depends = dependencies.get(name, dependencies["saebench"])
        for label, sae in saes.items():
            for shown, form in _forms(label, name, request.codes if signed[label] else "as_is"):
                mark = fingerprint([], [linear[label].identity, name, form, depends])
                tasks.append(
                    BenchTask(
                        name=shown,
                        release=releases[label] or (label, "custom_sae"),
                        sae=sae,
                        eval=name,
                        form=form,
                        path=out / EVALS[name].folder / f"{file_stem(shown)}{RESULT_ENDING}",
                        mark=mark,
                        depends=depends,
                    )
                )
    return tasks


def _forms(label: str, name: str, codes: RequestedForm) -> list[tuple[str, CodeForm]]:
    if codes == "both":
        forms: tuple[CodeForm, ...] = ("as_is", "non_negative")
        return [(f"{label}+{form}", form) for form in forms]
    return [(label, EVALS[name].form if codes == "auto" else codes)]


def kept_result(task: BenchTask) -> dict[str, Any] | None:
    """The result file of a task, if there is one of the same SAE, data and settings.

    Raises:
        InputError: It is damaged.
    """
    if not task.path.exists():
        return None
    with explained(task.path, "is damaged", "delete it, or leave out --resume"):
        data = json.loads(task.path.read_text(encoding="utf-8"))
        same = data["sae_cfg_dict"].get("isae_bench", {}).get("mark") == task.mark
        # read here, where a damaged file is named
        return data if same and _metrics(data) else None


def result_of(task: BenchTask, data: dict[str, Any] | None) -> BenchResult:
    """What a result file says."""
    assert data is not None
    return BenchResult(
        sae=task.name, eval=task.eval, form=task.form, path=task.path, metrics=_metrics(data)
    )


def _metrics(data: dict[str, Any]) -> dict[str, float]:
    groups = data["eval_result_metrics"].values()
    metrics = {key: value for group in groups for key, value in group.items() if value is not None}
    alive = data["sae_cfg_dict"]["isae_bench"].get("frac_alive_latents")
    return metrics if alive is None else {**metrics, "frac_alive_latents": alive}
