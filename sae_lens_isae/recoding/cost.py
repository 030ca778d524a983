"""What a recoding study takes, before it begins and afterwards, part by part."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from sae_lens_isae.recoding.algorithms import GD, IHT, OMP, Algorithm, Recoder, Samples
from sae_lens_isae.recoding.results import RecodedSAE, RecodeSettings
from sae_lens_isae.report.tables import Table

PARTS = {
    "codes": "codes",
    "noise": "stability under noise",
    "decoders": "refitted decoders",
    "ablation": "ablation",
}
"""Parts of a study, and what they are called."""
_TRIED = 16
"""Samples on which the algorithms are timed."""
_MINUTE = 60


def part_of(name: str) -> str:
    """Which of `PARTS` a finished part of the study belongs to."""
    begins = name.partition("_")[0]
    return begins if begins in PARTS else "codes"


def estimate(
    recoder: Recoder,
    samples: Samples,
    settings: RecodeSettings,
    n_gd: int,
    n_model_runs: int,
    seconds_per_run: float,
) -> dict[str, float]:
    """About how many seconds each part takes, from timing the algorithms on a few samples.

    Args:
        n_gd: Samples for GD-sparse.
        n_model_runs: Prompts that are run for the ablation.
        seconds_per_run: Of the model.
    """
    # what is computed once, such as the atoms' inner products, is none of a sample's
    recoder.recode(OMP, samples.pick(slice(1)))
    each = {algorithm: _seconds(recoder, algorithm, samples) for algorithm in (OMP, IHT, GD)}
    n = len(samples)
    n_noise = min(settings.noise_samples, n)
    pursuits = each[OMP] + each[IHT]
    mean_k = max(1.0, float(samples.k.double().mean()))
    levels = [k for k in settings.decoder_k if k <= int(samples.k.max())]
    return {
        "codes": n * (each[OMP] * (1 + len(settings.exclude)) + 2 * each[IHT])
        + n_gd * settings.gd_starts * each[GD],
        "noise": len(settings.noise_levels) * n_noise * pursuits + n_gd * each[GD],
        "decoders": sum(n * pursuits * min(1.0, k / mean_k) for k in levels) + n_gd * each[GD],
        "ablation": n_model_runs * seconds_per_run,
    }


def _seconds(recoder: Recoder, algorithm: Algorithm, samples: Samples) -> float:
    """Of an algorithm on one sample."""
    some = samples.pick(slice(_TRIED))
    start = time.perf_counter()
    recoder.recode(algorithm, some)
    if some.x.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / len(some)


def in_words(seconds: Mapping[str, float]) -> str:
    """The total and the parts of an estimate, as a sentence."""
    parts = [f"{PARTS[name]} {_time(value)}" for name, value in seconds.items() if value >= 1]
    total = f"about {_time(sum(seconds.values()))}"
    return f"{total}: {', '.join(parts)}" if parts else total


def _time(seconds: float) -> str:
    return f"{seconds / _MINUTE:.0f} min" if seconds >= 1.5 * _MINUTE else f"{seconds:.0f} s"


def cost_table(saes: Sequence[RecodedSAE]) -> Table:
    """Seconds that every part took in this run; those that were there already took none."""
    rows: list[list[str]] = []
    for sae in saes:
        totals = dict.fromkeys(PARTS, 0.0)
        for name, seconds in sae.seconds.items():
            totals[part_of(name)] += seconds
        rows.append([sae.name, *(f"{seconds:.0f} s" for seconds in totals.values())])
    return Table("What it cost", ["SAE", *PARTS.values()], rows)
