"""The whole study of 'Which Sparse Code?' on one or more SAEs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sae_lens_isae.errors import InputError
from sae_lens_isae.inputs.activations import AnyActivations, as_source
from sae_lens_isae.inputs.comparable import check_comparable, what_seeds_varied
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.inputs.patch_images import Origin
from sae_lens_isae.inputs.saes import AnySAEs, named_saes
from sae_lens_isae.progress import progress_bar, progress_shown
from sae_lens_isae.recoding.cost import in_words
from sae_lens_isae.recoding.prompted_model import PromptedModel, prompted_model
from sae_lens_isae.recoding.report import RecodingReport
from sae_lens_isae.recoding.results import RecodeSettings
from sae_lens_isae.recoding.sae_study import SAEStudy
from sae_lens_isae.recoding.shown import ShownLatents


def recode(
    saes: AnySAEs,
    activations: AnyActivations | PromptedModel = None,
    settings: RecodeSettings | None = None,
    *,
    cache: Path | None = None,
    force: bool = False,
    announce: Callable[[str], None] | None = None,
    progress: bool = True,
) -> RecodingReport:
    """Code the same activations by other sparse coding algorithms and compare with the encoder.

    Args:
        saes: One or several, loaded, or by their names (folders, `release/sae_id`).
        activations: At the SAEs' hook: a tensor, a file, a generator (`open_activations`). Or a
            model and prompts (`prompted_model`): activations are taken at the last position, and
            features are ablated there. By default the SAEs' own model with the facts that come with
            this package.
        settings: What is computed; the defaults are the paper's.
        cache: Folder for finished parts, with which an interrupted study goes on.
        force: Accept SAEs that are for different models or hooks.
        announce: Takes a sentence about how long the study will be, before it begins.
        progress: Show progress bars.

    Raises:
        InputError: An SAE does not fit the activations or the model, activations are not finite,
            or no sample has a latent.

    Examples:
        >>> import torch
        >>> from sae_lens import TopKSAE, TopKSAEConfig
        >>> import sae_lens_isae
        >>> _ = torch.manual_seed(0)
        >>> sae = TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=2))
        >>> quick = sae_lens_isae.RecodeSettings(n_components=5, gd_starts=1, noise_levels=(0.1,))
        >>> report = sae_lens_isae.recode(sae, torch.randn(50, 8), quick, progress=False)
        >>> report.saes[0].agreement["method"].tolist()[:2]
        ['OMP', 'OMP-exclude-top1']
    """
    settings = settings or RecodeSettings()
    with progress_shown(progress):
        named = named_saes(saes)
        if not named:
            raise InputError("no SAE was given")
        if activations is None:
            activations = prompted_model(list(named.values()))
        if isinstance(activations, PromptedModel):
            given, description = activations, activations.description
            origin: Callable[[], Origin | None] = activations.text
            hooks = {sae.cfg.metadata.hook_name for sae in named.values()}
            given.read(sorted(hook for hook in hooks if hook is not None))
        else:
            check_comparable(named, force=force)
            source = as_source(activations, named)
            given = torch.cat(list(source.batches(source.n_samples)))
            description, origin = source.description, source.origin
        studies = [
            SAEStudy(name, LinearSAE(sae, name), given, settings, cache)
            for name, sae in named.items()
        ]
        if announce is not None:
            _announce(studies, announce)
        bar = progress_bar(studies, desc="SAEs", unit="SAE", leave=False, disable=len(named) < 2)
        found = [study.run() for study in bar]
        shown = ShownLatents(
            [study.shown(of_sae) for study, of_sae in zip(studies, found, strict=True)],
            origin(),
        )
    prompted = given if isinstance(given, PromptedModel) else None
    return RecodingReport(
        saes=found,
        settings=settings,
        shown=shown,
        n_prompts=None if prompted is None else len(prompted),
        n_correct=None if prompted is None else int(prompted.correct.sum()),
        activations=description,
        device=str(next(iter(named.values())).device),
        seeds=what_seeds_varied(named),
    )


def _announce(studies: Sequence[SAEStudy], announce: Callable[[str], None]) -> None:
    estimates = [study.estimate() for study in studies]
    new = [each for each in estimates if each is not None]
    if len(new) < len(estimates):
        announce("going on from the parts that are finished")
    if new:
        announce(in_words({part: sum(each[part] for each in new) for part in new[0]}))
