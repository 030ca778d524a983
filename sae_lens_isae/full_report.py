"""`isae report`: train seeds of one recipe and say on one page which of their features to trust.

Everything lies in one folder. What is finished is not done again: the same call goes on where it
was stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from sae_lens import SAE, LanguageModelSAERunnerConfig

from sae_lens_isae.errors import InputError, MissingInputError, explained
from sae_lens_isae.evals.run import bench
from sae_lens_isae.files import fingerprint, output_folder, write_json, write_whole
from sae_lens_isae.identifiability.audit import audit
from sae_lens_isae.identifiability.pairwise import pairwise_identifiability
from sae_lens_isae.identifiability.pairwise_report import PairwiseReport
from sae_lens_isae.inputs.activation_source import ActivationSource
from sae_lens_isae.inputs.activations import open_activations
from sae_lens_isae.inputs.identity import sae_identity
from sae_lens_isae.inputs.language_models import gains_from_bfloat16
from sae_lens_isae.inputs.model_activations import with_model
from sae_lens_isae.inputs.saes import named_saes
from sae_lens_isae.recoding import RecodeSettings, prompted_model, recode
from sae_lens_isae.report.made import versions
from sae_lens_isae.report.page import PLOTLY_FILENAME, Card, Section, write_page, write_script
from sae_lens_isae.report.report import Report
from sae_lens_isae.report.tables import Table
from sae_lens_isae.training.checkpoints import LATEST, Stopped
from sae_lens_isae.training.preparation import is_vision
from sae_lens_isae.training.results import ACTIVATIONS_FILENAME
from sae_lens_isae.training.runs import train
from sae_lens_isae.training.seeds import Vary

INDEX_FILENAME, STATE_FILENAME = "index.html", "report.json"
TITLE = "Which features can be trusted?"
_PLACES = ("checkpoint_path", "output_path", "resume_from_checkpoint", "device", "logger")
"""Of SAELens' config, what does not change the SAEs."""
_FEATURES = "Some features that every seed found"
_NO_FEATURES = (
    "None: no latent was found in every other SAE and fires together with its partners there."
)
_N_FEATURES = 10
_ABLATED = 5
"""Features at once, in a quick recoding study."""
_SAES, _CHECKPOINTS = "saes", "checkpoints"


@dataclass(frozen=True, kw_only=True)
class ReportPlan:
    """What is done."""

    n_seeds: int = 2
    vary: Vary = "both"
    recode: Literal["quick", "full", "none"] = "quick"
    evals: tuple[str, ...] | None = None
    """Of `isae bench`; by default `core`, where SAEBench is installed."""
    n_activations: int = 4096
    """Held-out activations on which seeds are compared."""
    seed: int = 0
    """Of what is random in the measurements."""

    def __post_init__(self) -> None:
        if self.n_seeds < 2:
            raise InputError(
                f"a report compares two or more seeds, got {self.n_seeds}; `isae train` and "
                "`isae audit` take a single one"
            )


def full_report(
    cfg: LanguageModelSAERunnerConfig[Any],
    out: str | Path,
    plan: ReportPlan | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Train seeds, compare them, audit and recode them, evaluate them, and lead to all from a page.

    Args:
        cfg: How each seed is trained, but for where it is kept.
        out: Folder for everything.
        say: Takes a line as each part begins, and its answer.

    Returns:
        The page.

    Raises:
        InputError: The folder holds the report of another recipe, or a part cannot be done.
        MissingInputError: The model or text of a package is missing; says what to install.
    """
    plan = plan or ReportPlan()
    with output_folder(Path(out)) as folder:
        return _FullReport(cfg, folder, plan, say or (lambda _: None)).run()


class _FullReport:
    """One folder with SAEs, pages, and a file that says what is finished."""

    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[Any],
        folder: Path,
        plan: ReportPlan,
        say: Callable[[str], None],
    ) -> None:
        self._cfg = cfg
        self._folder = folder
        self._plan = plan
        self._say = say
        self._state_file = folder / STATE_FILENAME
        self._state: dict[str, Any] = {"parts": {}}
        if self._state_file.exists():
            with explained(self._state_file, "is damaged", "remove it, and all is done anew"):
                self._state = json.loads(self._state_file.read_text(encoding="utf-8"))
        evals = plan.evals
        if evals is None:
            evals = ("core",) if find_spec("sae_bench") and not is_vision(cfg) else ()
        elif evals and is_vision(cfg):
            raise InputError(
                "SAEBench and CE-bench evaluate SAEs on language models; leave out --evals"
            )
        self._evals = evals
        self._n_parts = 3 + (plan.recode != "none") + bool(evals)
        self._n_begun = 0

    def run(self) -> Path:
        write_script(self._folder)
        self._train()
        saes = named_saes([str(path) for path in self._paths], self._cfg.device)
        identities = {name: sae_identity(sae) for name, sae in saes.items()}
        source = self._source(saes)
        settings = {
            "saes": list(identities.values()),
            "seed": self._plan.seed,
            "versions": list(versions()),
        }

        def compared() -> PairwiseReport:
            return pairwise_identifiability(saes, source, seed=self._plan.seed)

        self._part("pairwise", settings, compared)
        self._part("audit", settings, lambda: audit(saes, source, seed=self._plan.seed))
        if self._plan.recode != "none":
            recoding = RecodeSettings(seed=self._plan.seed)
            if self._plan.recode == "quick":
                recoding = replace(recoding.quick(), ablation_k=(_ABLATED,))

            def recoded() -> Report:
                given = source
                if not is_vision(self._cfg):
                    given = prompted_model(list(saes.values()), autocast=self._autocast)
                parts = self._folder / "recode" / "parts"
                return recode(saes, given, recoding, cache=parts, announce=self._say)

            self._part("recode", {**settings, "recode": str(recoding)}, recoded)
        if self._evals:
            self._part("bench", {**settings, "evals": self._evals}, self._benched)
        return self._write_index(saes, identities)

    @property
    def _autocast(self) -> bool:
        return self._cfg.autocast_lm and gains_from_bfloat16(self._cfg.device)

    @property
    def _paths(self) -> list[Path]:
        numbers = range(self._cfg.seed, self._cfg.seed + self._plan.n_seeds)
        return [self._folder / _SAES / f"seed_{number}" for number in numbers]

    def _train(self) -> None:
        recipe = {k: v for k, v in self._cfg.to_dict().items() if k not in _PLACES}
        key = fingerprint([], [recipe, self._plan.n_seeds, self._plan.vary])
        begun = self._state.get("recipe")
        if begun is not None and begun != key:
            raise InputError(
                f"{self._folder} holds the report of another recipe or number of seeds; name "
                "another folder (--out), or remove it"
            )
        self._begin(f"training {self._plan.n_seeds} seeds")
        if "train" in self._state["parts"]:
            return
        self._state["recipe"] = key
        self._keep()
        self._cfg.output_path = str(self._folder / _SAES)
        self._cfg.checkpoint_path = str(self._folder / _CHECKPOINTS / "run")
        # where there is a checkpoint of an interrupted run
        self._cfg.resume_from_checkpoint = LATEST
        start = time.perf_counter()
        try:
            result = train(
                self._cfg,
                self._plan.n_seeds,
                n_kept_activations=self._plan.n_activations,
                vary=self._plan.vary,
            )
        except Stopped as error:
            raise Stopped("training was stopped; the same command goes on from there") from error
        metrics = {trained.name: trained.metrics for trained in result.saes}
        self._finish("train", {"metrics": metrics}, start)
        shutil.rmtree(self._folder / _CHECKPOINTS, ignore_errors=True)

    def _source(self, saes: dict[str, SAE[Any]]) -> ActivationSource:
        """The held-out activations, with the language model that they are of."""
        first = next(iter(saes.values()))
        metadata = first.cfg.metadata
        file = self._folder / _SAES / ACTIVATIONS_FILENAME
        source = open_activations(str(file), None, metadata.hook_name, metadata.model_name)
        if is_vision(self._cfg):
            return source
        return with_model(source, first, device=self._cfg.device)

    def _benched(self) -> Report:
        names = {path.name: path for path in self._paths}
        out = self._folder / "bench"
        return bench(
            names,
            self._evals,
            out,
            resume=True,
            autocast=self._autocast,
            device=self._cfg.device,
        )

    def _part(self, name: str, settings: dict[str, Any], measure: Callable[[], Any]) -> None:
        key = fingerprint([], settings)
        self._begin(_DOING[name])
        kept = self._state["parts"].get(name)
        page = self._folder / name / f"{name}.html"
        if kept is None or kept["key"] != key or not page.exists():
            start = time.perf_counter()
            report = measure()
            report.save(self._folder / name)
            found = {"key": key, "title": report.title, "answer": report.summary()}
            if isinstance(report, PairwiseReport):
                found |= {"verdict": report.verdict(), "features": stable_features(report)}
            self._finish(name, found, start)
        self._say(f"  {self._state['parts'][name]['answer']}")

    def _begin(self, doing: str) -> None:
        self._n_begun += 1
        self._say(f"{self._n_begun} of {self._n_parts}: {doing}")

    def _finish(self, name: str, found: dict[str, Any], start: float) -> None:
        self._state["parts"][name] = {**found, "seconds": round(time.perf_counter() - start, 1)}
        self._keep()

    def _keep(self) -> None:
        write_json(self._state_file, self._state)

    def _write_index(self, saes: dict[str, SAE[Any]], identities: dict[str, str]) -> Path:
        parts = self._state["parts"]
        shown = [name for name in _DOING if name in parts]
        pairwise = parts["pairwise"]
        headers, rows = pairwise["features"]
        features = [Table(_FEATURES, headers, rows, is_text=True)] if rows else [_NO_FEATURES]
        trained = parts["train"]["metrics"]
        metric, score = ("ce_loss_score", "CE-loss score")
        if is_vision(self._cfg):
            metric, score = ("explained_variance", "explained variance")
        about = Table(
            "The SAEs",
            ["SAE", "architecture", "latents", score, "folder", "identity"],
            [
                [
                    name,
                    sae.cfg.architecture(),
                    str(sae.cfg.d_sae),
                    f"{trained[name][metric]:.3f}",
                    f"{_SAES}/{path.name}",
                    identities[name],
                ]
                for path, (name, sae) in zip(self._paths, saes.items(), strict=True)
            ],
            is_text=True,
        )
        seconds = [[name, f"{part['seconds']:.0f} s"] for name, part in parts.items()]
        recipe = [f"{k}: {v}" for k, v in self._cfg.to_dict().items() if k not in _PLACES]
        cards = [
            Card(f"{name}/{name}.html", parts[name]["title"], parts[name]["answer"])
            for name in shown
        ]
        sections = [
            Section(_FEATURES, features),
            Section("The pages", cards),
            Section("The SAEs", [about]),
            Section(
                "What it took", [Table("What it took", ["part", "time"], seconds)], folded=True
            ),
            Section("How they were trained", [recipe], folded=True),
        ]
        index = self._folder / INDEX_FILENAME
        write_whole(
            index,
            lambda scratch: write_page(
                scratch, TITLE, pairwise["verdict"], sections, self._folder / PLOTLY_FILENAME
            ),
        )
        return index


_DOING = {
    "pairwise": "comparing seeds",
    "audit": "auditing the theory's assumptions",
    "recode": "recoding with other algorithms",
    "bench": "evaluating with SAEBench",
}


def stable_features(report: PairwiseReport, n: int = _N_FEATURES) -> list[list[Any]]:
    """Headers and rows: trusted latents of the first SAE that fire with their partners most often,
    and what they are active on."""
    sae = report.saes[0].name
    latents = report.latents
    trusted = latents.loc[(latents["sae"] == sae) & (latents["trust"] == "trusted"), :]
    best = trusted.sort_values("mean_code_iou", ascending=False).head(n)
    headers = [f"latent of {sae}", "fires", "cosine", "IoU", "most active on"]
    rows = [
        [
            str(int(row["latent"])),
            f"{row['firing_rate']:.4f}",
            f"{row['mean_cosine']:.3f}",
            f"{row['mean_code_iou']:.3f}",
            _active_on(report, sae, int(row["latent"])),
        ]
        for row in best.to_dict(orient="records")
    ]
    return [headers, rows]


def _active_on(report: PairwiseReport, sae: str, latent: int, n: int = 3) -> str:
    contexts = report.contexts(sae, latent)
    if "token" not in contexts:
        return "-"
    order = contexts["code"].abs().sort_values(ascending=False).index
    strongest: pd.DataFrame = contexts.loc[order, :].head(n)
    words = zip(strongest["before"], strongest["token"], strongest["after"], strict=True)
    shown: list[str] = []
    for before, token, after in words:
        space = token[: len(token) - len(token.lstrip())]
        excerpt = f"{before[-_AROUND:]}{space}[{token.lstrip()}]{after[:_AROUND]}"
        shown.append(" ".join(excerpt.split()))
    return " | ".join(shown)


_AROUND = 24
"""Characters on both sides of a token."""


_LOGGED = ("*.html", "*.js", "*.json", "*/*.html", "*/*.json", "*/*.parquet")


def log_artifact(folder: Path, project: str) -> str:
    """Put the pages and numbers of a report into a project of Weights & Biases.

    Returns:
        The artifact's name.

    Raises:
        MissingInputError: wandb is not installed.
    """
    if find_spec("wandb") is None:
        raise MissingInputError("the package wandb is not installed: run `pip install wandb`")
    import wandb  # noqa: PLC0415 - takes seconds, and only whoever asks for it needs it

    files = [path for pattern in _LOGGED for path in folder.glob(pattern)]
    name = f"isae-report-{fingerprint([], json.loads((folder / STATE_FILENAME).read_text()))[:8]}"
    with wandb.init(project=project, job_type="isae report") as run:
        artifact = wandb.Artifact(name, type="report")
        for path in files:
            artifact.add_file(str(path), name=str(path.relative_to(folder)))
        run.log_artifact(artifact)
    return name
