"""The study of 'Which Sparse Code?' on one SAE."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float

from sae_lens_isae.contexts.latent_browser import ShownSAE
from sae_lens_isae.contexts.promoted import promoted_tokens
from sae_lens_isae.errors import InputError
from sae_lens_isae.files import fingerprint
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.recoding.ablation import ablate
from sae_lens_isae.recoding.agreement import MAX_CHANCE, compare_with_encoder, jaccard
from sae_lens_isae.recoding.algorithms import (
    ENCODER,
    GD,
    IHT,
    IHT_ENCODER,
    OMP,
    Algorithm,
    Recoder,
    Samples,
    algorithms,
)
from sae_lens_isae.recoding.cache import StudyCache
from sae_lens_isae.recoding.cost import estimate
from sae_lens_isae.recoding.decoders import compare_decoders
from sae_lens_isae.recoding.prompted_model import PromptedModel
from sae_lens_isae.recoding.prompts import templates_of
from sae_lens_isae.recoding.results import SCHEMA, RecodedSAE, RecodeSettings
from sae_lens_isae.recoding.robustness import latent_picks, template_shares
from sae_lens_isae.recoding.shown import shown_latents
from sae_lens_isae.recoding.tables import BY_CHANCE
from sae_lens_isae.solvers import SparseCodes

_CPU_GD_SAMPLES = 64
_FEW_SAMPLES_PER_COMPONENT = 4
_AGREEING = (OMP, IHT_ENCODER, IHT)
"""Algorithms that a robust feature must be picked by: not those that must do without the encoder's
largest, nor GD-sparse, which shares no feature with anything (Jaccard 0.00 in the paper)."""
_COMPARED = (ENCODER, OMP, IHT, GD)
"""Algorithms whose stability under noise and whose decoders are compared."""


class SAEStudy:
    """The study on one SAE."""

    def __init__(
        self,
        name: str,
        linear: LinearSAE,
        activations: Float[torch.Tensor, "samples d_in"] | PromptedModel,
        settings: RecodeSettings,
        cache: Path | None,
    ) -> None:
        self._name = name
        self._linear = linear
        self._settings = settings
        self._algorithms = algorithms(settings.exclude)
        self._hook: str | None = linear.cfg.metadata.hook_name
        self._prompted = activations if isinstance(activations, PromptedModel) else None
        if isinstance(activations, PromptedModel):
            if self._hook is None:
                raise InputError(f"{name}: the SAE's metadata names no hook to take activations at")
            activations = activations.activations(self._hook)
        self._recoder = Recoder(linear, settings.seed)
        try:
            encoded = self._recoder.encode(activations)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        # in random order: any first samples are a random subset
        order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(settings.seed))
        is_zero = (encoded.x == 0).all(-1).cpu()
        order = order[((encoded.k > 0) & ~is_zero)[order]]
        if not len(order):
            raise InputError(
                f"{name}: the encoder gives the zero code to all {len(encoded)} samples that are "
                "not zero themselves"
            )
        self._order = order
        self._samples = encoded.pick(order.to(linear.device))
        self._n_zero_rows = int(is_zero.sum())
        self._n_empty = len(encoded) - len(order) - self._n_zero_rows
        if cache is not None:
            answers = [] if self._prompted is None else self._prompted.what_it_says()
            cache /= fingerprint(
                [activations, *answers], [SCHEMA, linear.identity, asdict(settings)]
            )
        self._cache = StudyCache(cache)
        gd = settings.gd_samples
        if gd is None:
            gd = _CPU_GD_SAMPLES if self._samples.x.device.type == "cpu" else len(self._samples)
        self._n_gd = min(gd, len(self._samples))
        self._notes = self._first_notes()

    def run(self) -> RecodedSAE:
        codes = self._codes()
        return RecodedSAE(
            name=self._name,
            architecture=self._linear.cfg.architecture(),
            d_sae=self._linear.d_sae,
            hook_name=self._hook,
            n_samples=len(self._samples),
            n_empty=self._n_empty,
            n_zero_rows=self._n_zero_rows,
            mean_k=self._samples.k.double().mean().item(),
            agreement=self._cache.table("agreement", lambda: self._agreement(codes)),
            noise=self._noise(codes),
            **self._decoders(),
            ablation=self._ablation(codes),
            **self._picks(codes),
            notes=self._notes,
            seconds=self._cache.seconds,
        )

    def _first_notes(self) -> list[str]:
        notes: list[str] = []
        if self._n_empty:
            notes.append(f"{self._n_empty} samples with the zero code are left out")
        if self._n_zero_rows:
            notes.append(f"{self._n_zero_rows} all-zero activations are left out")
        components = self._settings.n_components
        by_number: dict[int, list[str]] = {}
        for algorithm in self._algorithms:
            n = self._n_gd if algorithm is GD else len(self._samples)
            by_number.setdefault(n, []).append(algorithm.name)
        for n, methods in by_number.items():
            if n < _FEW_SAMPLES_PER_COMPONENT * components:
                # centring takes one dimension of the samples
                chance = min(components, n - 1) / max(n - 1, 1)
                what = "are left out" if chance > MAX_CHANCE else "mean little"
                notes.append(
                    f"R2 and CCA of {', '.join(methods)} {what}: {n} samples are few for "
                    f"{components} principal components, and unrelated codes would have an R2 of "
                    f"about {chance:.2f}"
                )
                warnings.warn(f"{self._name}: {notes[-1]}", stacklevel=5)
        return notes

    def _first(self, n: int) -> Samples:
        return self._samples.pick(slice(n))

    def _gd_share(self, n_levels: int, n: int) -> int:
        """Samples for GD-sparse at each of several levels."""
        everything = self._n_gd == len(self._samples)
        return n if everything else min(n, max(1, self._n_gd // n_levels))

    def _label(self, what: str) -> str:
        return f"{self._name}: {what}"

    def _codes(self) -> dict[str, list[SparseCodes]]:
        codes = {ENCODER.name: [self._samples.codes]}
        for algorithm in self._algorithms:
            samples = self._first(self._n_gd) if algorithm is GD else self._samples
            starts = self._settings.gd_starts if algorithm is GD else 1

            def compute(
                algorithm: Algorithm = algorithm, samples: Samples = samples, starts: int = starts
            ) -> list[SparseCodes]:
                label = self._label(algorithm.name)
                return self._recoder.recode(algorithm, samples, starts, label)

            name = algorithm.name
            codes[name] = self._cache.codes(name, self._samples.x.device, compute)
        if self._n_gd < len(self._samples):
            self._notes.append(
                f"GD-sparse on {self._n_gd} of {len(self._samples)} samples, drawn at random"
            )
        return codes

    def _picks(self, codes: Mapping[str, list[SparseCodes]]) -> dict[str, Any]:
        others = {name: starts[0] for name, starts in codes.items() if name != ENCODER.name}
        agreeing = [algorithm.name for algorithm in _AGREEING]
        found = latent_picks(self._samples.codes, others, agreeing)
        by_chance = latent_picks(
            self._samples.codes, {name: others[name].rolled() for name in agreeing}, agreeing
        )
        found = {**found._asdict(), "latents_by_chance": by_chance.latents}
        if self._prompted is None or not self._prompted.prompts:
            return found
        prompts = self._prompted.prompts
        templates = templates_of(prompts)
        of_templates = template_shares(
            self._samples.codes,
            [templates[row] for row in self._order],
            [prompts[row].text for row in self._order],
        )
        return {**found, "latents": found["latents"].merge(of_templates, on="latent")}

    def _agreement(self, codes: Mapping[str, list[SparseCodes]]) -> pd.DataFrame:
        rows: list[dict[str, Any]] = []
        for method, starts in codes.items():
            if method == ENCODER.name:
                continue
            samples = self._first(len(starts[0].indices))
            each = pd.DataFrame(
                [
                    asdict(
                        compare_with_encoder(
                            samples.codes,
                            code,
                            samples.target,
                            self._linear.atoms,
                            self._settings.n_components,
                        )
                    )
                    for code in starts
                ]
            )
            overlap = jaccard(starts[0], starts[1]).mean().item() if len(starts) > 1 else None
            mean = each.astype(float).mean().to_dict()
            rows.append({"method": method, **mean, "n_samples": len(samples), "starts": overlap})
        return pd.DataFrame(rows)

    def _noise(self, codes: Mapping[str, list[SparseCodes]]) -> pd.DataFrame:
        settings = self._settings
        n = min(settings.noise_samples, len(self._samples))
        n_gd = self._gd_share(len(settings.noise_levels), n)
        tables: list[pd.DataFrame] = []
        for sigma in settings.noise_levels:
            for algorithm in _COMPARED:

                def compute(algorithm: Algorithm = algorithm, sigma: float = sigma) -> pd.DataFrame:
                    name = algorithm.name
                    some = n_gd if algorithm is GD else n
                    noisy = self._noisy(n, sigma).pick(slice(some))
                    label = self._label(f"{name}, noise {sigma}")
                    (found,) = self._recoder.recode(algorithm, noisy, 1, label)
                    overlap = jaccard(codes[name][0].pick(slice(some)), found)
                    row = {"method": name, "sigma": sigma, "n_samples": some}
                    return pd.DataFrame([{**row, "jaccard": overlap.mean().item()}])

                tables.append(self._cache.table(f"noise_{algorithm.name}_{sigma}", compute))
        return pd.concat(tables, ignore_index=True)

    def _noisy(self, n: int, sigma: float) -> Samples:
        x = self._samples.x[:n]
        generator = torch.Generator().manual_seed(self._settings.seed)
        noise = torch.randn(x.shape, generator=generator).to(x)
        return self._recoder.encode(x + sigma * noise)

    def _decoders(self) -> dict[str, pd.DataFrame]:
        longest = int(self._samples.k.max())
        levels = [k for k in self._settings.decoder_k if k <= longest]
        if len(levels) < len(self._settings.decoder_k):
            self._notes.append(
                f"decoders are refitted for k up to {levels[-1] if levels else 0}: the encoder "
                f"uses at most {longest} latents"
            )
        alone: list[pd.DataFrame] = []
        pairs: list[pd.DataFrame] = []
        for k in levels:
            found = self._cache.table(
                f"decoders_{k}", lambda k=k: self._decoders_at(k, len(levels))
            )
            alone.append(found.loc[found["other"].isna()].drop(columns="other"))
            pairs.append(found.loc[found["other"].notna()])
        empty = pd.DataFrame(columns=["method", "other", "k", "n_samples", "cosine"])
        return {
            "decoders": pd.concat(alone or [empty], ignore_index=True),
            "decoder_pairs": pd.concat(pairs or [empty], ignore_index=True),
        }

    def _decoders_at(self, k: int, n_levels: int) -> pd.DataFrame:
        samples = self._samples.limited_to(k)
        n_gd = self._gd_share(n_levels, len(samples))
        codes: dict[str, SparseCodes] = {}
        for algorithm in _COMPARED:
            some = samples.pick(slice(n_gd)) if algorithm is GD else samples
            label = self._label(f"{algorithm.name}, k = {k}")
            (codes[algorithm.name],) = self._recoder.recode(algorithm, some, 1, label)
        found = compare_decoders(codes, samples.target, self._linear.atoms, self._settings.ridge)
        return found.assign(k=k)

    def _ablation(self, codes: Mapping[str, list[SparseCodes]]) -> pd.DataFrame | None:
        prompted, hook = self._prompted, self._hook
        if prompted is None or hook is None or not self._settings.ablation_k:
            return None
        correct = prompted.correct[self._order]
        if not correct.any():
            self._notes.append(
                f"no ablation: the model answers none of the {len(prompted)} prompts correctly"
            )
            warnings.warn(f"{self._name}: {self._notes[-1]}", stacklevel=4)
            return None
        tables: list[pd.DataFrame] = []
        for method, starts in codes.items():
            # a method that saw only the first samples has codes of the first correct ones
            rows = correct[: len(starts[0].indices)].nonzero()[:, 0]
            if not len(rows):
                continue

            def compute(
                method: str = method, code: SparseCodes = starts[0], rows: torch.Tensor = rows
            ) -> pd.DataFrame:
                at = rows.to(self._samples.x.device)
                found = ablate(
                    prompted,
                    hook,
                    self._order[rows],
                    self._samples.x[at],
                    code.pick(at),
                    self._linear.atoms,
                    self._settings.ablation_k,
                    self._label(f"ablation, {method}"),
                )
                return found.assign(method=method)

            tables.append(self._cache.table(f"ablation_{method}", compute))
        rows = correct.nonzero()[:, 0]
        if len(rows) > 1:
            tables.append(
                self._cache.table(
                    "ablation_by_chance", lambda: self._ablated_by_chance(prompted, hook, rows)
                )
            )
        return pd.concat(tables, ignore_index=True)

    def _ablated_by_chance(
        self, prompted: PromptedModel, hook: str, rows: torch.Tensor
    ) -> pd.DataFrame:
        """The encoder's features of another sample, taken away from this one at the length of its
        own."""
        at = rows.to(self._samples.x.device)
        own = self._samples.codes.pick(at)
        found = ablate(
            prompted,
            hook,
            self._order[rows],
            self._samples.x[at],
            own.rolled(),
            self._linear.atoms,
            self._settings.ablation_k,
            self._label(f"ablation, {BY_CHANCE}"),
            as_long_as=own,
        )
        return found.assign(method=BY_CHANCE)

    def estimate(self) -> dict[str, float] | None:
        """See `cost.estimate`; None where parts of the study are there already."""
        if self._cache.has_parts:
            return None
        prompted, runs = self._prompted, 0
        if prompted is not None and self._settings.ablation_k:
            n_methods = len(self._algorithms) + 2
            runs = n_methods * len(self._settings.ablation_k) * int(prompted.correct.sum())
        seconds = 0.0 if prompted is None else prompted.seconds_per_prompt
        return estimate(self._recoder, self._samples, self._settings, self._n_gd, runs, seconds)

    def shown(self, found: RecodedSAE) -> ShownSAE:
        """Its latents for the page."""
        promoted = None
        if self._prompted is not None:
            promoted = promoted_tokens(self._prompted.model, self._hook, self._linear.atoms)
        neuronpedia_id = self._linear.cfg.metadata.neuronpedia_id
        return shown_latents(found, self._samples.codes, self._order, promoted, neuronpedia_id)
