"""The whole study of paper 4 on one or more SAEs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE
from tqdm.auto import tqdm

from sae_lens_isae.errors import InputError
from sae_lens_isae.files import fingerprint
from sae_lens_isae.identifiability.linear_model import LinearModel
from sae_lens_isae.recoding.ablation import PromptedModel, ablate
from sae_lens_isae.recoding.agreement import agreement, jaccard
from sae_lens_isae.recoding.algorithms import (
    ENCODER,
    GD,
    IHT,
    IHT_ENCODER,
    OMP,
    OMP_EXCLUDE,
    Recoder,
    Samples,
)
from sae_lens_isae.recoding.cache import Parts
from sae_lens_isae.recoding.decoders import compare_decoders
from sae_lens_isae.recoding.results import SCHEMA, RecodedSAE, RecodeSettings, RecodingReport
from sae_lens_isae.recoding.robustness import latent_agreement
from sae_lens_isae.solvers import SparseCodes

_CPU_GD_SAMPLES = 64
_FEW_SAMPLES_PER_COMPONENT = 4
_AGREEING = (OMP, IHT_ENCODER, IHT)
"""Algorithms that a robust feature must be picked by: not those that are forbidden the encoder's
largest, nor GD-sparse, which shares no feature with anything (paper 4: Jaccard 0.00)."""


def recode(
    saes: Mapping[str, SAE[Any]],
    activations: Float[torch.Tensor, "samples d_in"] | PromptedModel,
    settings: RecodeSettings | None = None,
    *,
    cache: Path | None = None,
) -> RecodingReport:
    """Code the same activations by other sparse coding algorithms and compare with the encoder.

    Args:
        saes: By name, of any architecture that SAELens loads.
        activations: At the SAEs' hook; or a model and prompts, whose activations at the last
            position are taken, and in which the features are ablated.
        cache: Folder for finished parts, with which an interrupted study goes on.

    Raises:
        ValueError: An SAE does not fit the activations or the model, activations are not finite,
            or no sample has a latent.
    """
    settings = settings or RecodeSettings()
    prompted = activations if isinstance(activations, PromptedModel) else None
    if prompted is not None:
        hooks = {sae.cfg.metadata.hook_name for sae in saes.values()}
        prompted.read(sorted(hook for hook in hooks if hook is not None))
    found = [
        _Study(name, LinearModel(sae, name), activations, settings, cache).run()
        for name, sae in tqdm(
            saes.items(), desc="SAEs", unit="SAE", leave=False, disable=len(saes) < 2
        )
    ]
    return RecodingReport(
        saes=found,
        settings=settings,
        n_prompts=None if prompted is None else len(prompted),
        n_correct=None if prompted is None else int(prompted.correct.sum()),
        device=str(next(iter(saes.values())).device),
    )


class _Study:
    """The study on one SAE."""

    def __init__(
        self,
        name: str,
        model: LinearModel,
        activations: Float[torch.Tensor, "samples d_in"] | PromptedModel,
        settings: RecodeSettings,
        cache: Path | None,
    ) -> None:
        self._name = name
        self._model = model
        self._settings = settings
        self._hook: str | None = model.cfg.metadata.hook_name
        self._prompted = activations if isinstance(activations, PromptedModel) else None
        if isinstance(activations, PromptedModel):
            if self._hook is None:
                raise InputError(f"{name}: the SAE's metadata names no hook to take activations at")
            activations = activations.activations(self._hook)
        self._recoder = Recoder(model, settings.seed)
        try:
            encoded = self._recoder.encode(activations)
        except ValueError as error:
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
        self._samples = encoded.pick(order.to(model.device))
        self._n_zero_rows = int(is_zero.sum())
        self._n_empty = len(encoded) - len(order) - self._n_zero_rows
        if cache is not None:
            answers = [] if self._prompted is None else self._prompted.what_it_says()
            cache /= fingerprint(
                [activations, *answers], [SCHEMA, model.identity, asdict(settings)]
            )
        self._parts = Parts(cache)
        gd = settings.gd_samples
        if gd is None:
            gd = _CPU_GD_SAMPLES if self._samples.x.device.type == "cpu" else len(self._samples)
        self._n_gd = min(gd, len(self._samples))
        self._notes = self._first_notes()

    def run(self) -> RecodedSAE:
        codes = self._codes()
        return RecodedSAE(
            name=self._name,
            architecture=self._model.cfg.architecture(),
            d_sae=self._model.d_sae,
            hook_name=self._hook,
            n_samples=len(self._samples),
            n_empty=self._n_empty,
            n_zero_rows=self._n_zero_rows,
            mean_k=self._samples.k.double().mean().item(),
            agreement=self._parts.table("agreement", lambda: self._agreement(codes)),
            noise=self._noise(codes),
            **self._decoders(),
            ablation=self._ablation(codes),
            latents=latent_agreement(
                self._samples.codes,
                {m: c[0] for m, c in codes.items() if m != ENCODER},
                _AGREEING,
            ),
            notes=self._notes,
            seconds=self._parts.seconds,
        )

    def _first_notes(self) -> list[str]:
        notes: list[str] = []
        if self._n_empty:
            notes.append(f"{self._n_empty} samples with the zero code are left out")
        if self._n_zero_rows:
            notes.append(f"{self._n_zero_rows} all-zero activations are left out")
        components = self._settings.n_components
        by_number: dict[int, list[str]] = {}
        for method in self._methods():
            n = self._n_gd if method == GD else len(self._samples)
            by_number.setdefault(n, []).append(method)
        for n, methods in by_number.items():
            if n < _FEW_SAMPLES_PER_COMPONENT * components:
                # centring takes one dimension of the samples
                chance = min(components, n - 1) / max(n - 1, 1)
                notes.append(
                    f"R2 and CCA of {', '.join(methods)} mean little: {n} samples are few for "
                    f"{components} principal components, and unrelated codes would have an R2 of "
                    f"about {chance:.2f}, see 'chance'"
                )
                warnings.warn(f"{self._name}: {notes[-1]}", stacklevel=5)
        return notes

    def _methods(self) -> Iterator[str]:
        yield OMP
        yield from (f"{OMP_EXCLUDE}{n}" for n in self._settings.exclude)
        yield from (IHT_ENCODER, IHT, GD)

    def _first(self, n: int) -> Samples:
        return self._samples.pick(slice(n))

    def _gd_share(self, n_levels: int, n: int) -> int:
        """Samples for GD-sparse at each of several levels."""
        everything = self._n_gd == len(self._samples)
        return n if everything else min(n, max(1, self._n_gd // n_levels))

    def _label(self, what: str) -> str:
        return f"{self._name}: {what}"

    def _codes(self) -> dict[str, list[SparseCodes]]:
        codes = {ENCODER: [self._samples.codes]}
        for method in self._methods():
            samples = self._first(self._n_gd) if method == GD else self._samples
            starts = self._settings.gd_starts if method == GD else 1

            def compute(
                method: str = method, samples: Samples = samples, starts: int = starts
            ) -> list[SparseCodes]:
                return self._recoder.recode(method, samples, starts, self._label(method))

            codes[method] = self._parts.codes(method, self._samples.x.device, compute)
        if self._n_gd < len(self._samples):
            self._notes.append(
                f"GD-sparse on {self._n_gd} of {len(self._samples)} samples, drawn at random"
            )
        return codes

    def _agreement(self, codes: Mapping[str, list[SparseCodes]]) -> pd.DataFrame:
        rows: list[dict[str, Any]] = []
        for method, starts in codes.items():
            if method == ENCODER:
                continue
            samples = self._first(len(starts[0].indices))
            each = pd.DataFrame(
                [
                    asdict(
                        agreement(
                            samples.codes,
                            code,
                            samples.target,
                            self._model.atoms,
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
            for method in (ENCODER, OMP, IHT, GD):

                def compute(method: str = method, sigma: float = sigma) -> pd.DataFrame:
                    some = n_gd if method == GD else n
                    noisy = self._noisy(n, sigma).pick(slice(some))
                    label = self._label(f"{method}, noise {sigma}")
                    (found,) = self._recoder.recode(method, noisy, 1, label)
                    overlap = jaccard(codes[method][0].pick(slice(some)), found)
                    row = {"method": method, "sigma": sigma, "n_samples": some}
                    return pd.DataFrame([{**row, "jaccard": overlap.mean().item()}])

                tables.append(self._parts.table(f"noise_{method}_{sigma}", compute))
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
            found = self._parts.table(
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
        for method in (ENCODER, OMP, IHT, GD):
            some = samples.pick(slice(n_gd)) if method == GD else samples
            label = self._label(f"{method}, k = {k}")
            (codes[method],) = self._recoder.recode(method, some, 1, label)
        found = compare_decoders(codes, samples.target, self._model.atoms, self._settings.ridge)
        return found.assign(k=k)

    def _ablation(self, codes: Mapping[str, list[SparseCodes]]) -> pd.DataFrame | None:
        prompted, hook = self._prompted, self._hook
        if prompted is None or hook is None:
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
                    self._model.atoms,
                    self._settings.ablation_k,
                    self._label(f"ablation, {method}"),
                )
                return found.assign(method=method)

            tables.append(self._parts.table(f"ablation_{method}", compute))
        return pd.concat(tables, ignore_index=True)
