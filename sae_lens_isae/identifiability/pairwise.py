"""Would another training run have found the same dictionary and the same codes?

The metrics of Nelson et al. 2026, section 4, for all pairs of two or more SAEs: dictionary cosine
similarity (DCS), intersection over union (IoU) of the supports and l2 error of the codes. The
dictionaries are matched up to permutation and sign first. Codes come from the SAEs' own encoders,
and from orthogonal matching pursuit on their dictionaries as an oracle: where the oracle agrees
better, the encoder is what limits agreement.

Where neither SAE's codes have signs, latents are matched up to permutation alone. Otherwise an SAE
with one latent for each sign of a concept would be matched to the wrong one half of the time. The
oracle's codes always have signs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from sae_lens_isae.contexts.promoted import promoted_by_all
from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability.chance import Chance, codes_by_chance, dictionaries_by_chance
from sae_lens_isae.identifiability.groups import groups_of
from sae_lens_isae.identifiability.latents import latent_tables
from sae_lens_isae.identifiability.pairwise_report import PairwiseReport
from sae_lens_isae.identifiability.pairwise_stream import FirstRows, Pair, Run
from sae_lens_isae.inputs.activation_source import ActivationSource, NumberedRows
from sae_lens_isae.inputs.activations import AnyActivations, as_source
from sae_lens_isae.inputs.comparable import check_comparable, what_seeds_varied
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.inputs.saes import AnySAEs, named_saes
from sae_lens_isae.progress import progress_bar, progress_shown

_CODE_BYTES = 2**29
"""Dense codes of all SAEs for one batch take no more than this."""
_MAX_BATCH = 1024


@torch.no_grad()
def pairwise_identifiability(
    saes: AnySAEs,
    activations: AnyActivations = None,
    *,
    groups: Mapping[str, str] | str | None = None,
    across: bool = False,
    n_oracle_samples: int = 1024,
    oracle_k: int | None = None,
    found_cosine: float = 0.9,
    chance: bool = True,
    seed: int = 0,
    force: bool = False,
    progress: bool = True,
) -> PairwiseReport:
    """Compare all pairs of two or more SAEs on the same activations. Any SAELens SAEs will do.

    Codes are compared in the space of the activations, as if every atom had unit norm. Activations
    are read in batches, once, or twice where a dictionary repeats atoms; each SAE encodes on its
    own device.

    Args:
        saes: Loaded, or by their names (folders, `release/sae_id`), in a list or a mapping.
        activations: At the SAEs' hook, not normalised: a tensor, a file, a generator
            (`open_activations`), or None to run the model that the SAEs' metadata name.
        groups: Which SAEs are seeds of one variant, see `groups_of`; by default by their names.
            Latents are looked for in the SAEs of the same group.
        across: Compare SAEs of different groups as well.
        n_oracle_samples: The oracle works on this many of them; 0 leaves it out.
        oracle_k: Atoms per sample for the oracle; by default the SAE's k, or without one as many
            as its own encoder uses on that sample.
        found_cosine: A latent counts as found in another SAE from this cosine on, after its sign.
        chance: Say what every number is by chance. It matches three pairs of random dictionaries
            for each size, which takes seconds up to 16,384 latents and minutes at 65,536.
        seed: Of the bootstrap, and of what is random by chance.
        force: Compare SAEs even if they are for different models or hooks.
        progress: Show progress bars.

    Raises:
        InputError: Fewer than two SAEs, SAEs for different activations, d_in differs, activations
            are empty, misshapen or not finite, an SAE holds NaN, or a setting is out of range.

    Examples:
        >>> import torch
        >>> from sae_lens import TopKSAE, TopKSAEConfig
        >>> import sae_lens_isae
        >>> _ = torch.manual_seed(0)
        >>> saes = {name: TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=2)) for name in "ab"}
        >>> report = sae_lens_isae.pairwise_identifiability(
        ...     saes, torch.randn(100, 8), n_oracle_samples=0, progress=False
        ... )
        >>> report.pairs[0].dcs < 0.9  # two dictionaries at random
        True
        >>> list(report.partners.columns[:4])
        ['sae', 'latent', 'other', 'partner']
    """
    check_settings(n_oracle_samples, oracle_k, found_cosine)
    with progress_shown(progress):
        named = named_saes(saes)
        if len(named) < 2:
            raise InputError(f"pairwise compares two or more SAEs, got {len(named)}")
        group_of = groups_of(list(named), groups)
        differences = [*check_comparable(named, force=force), *what_seeds_varied(named)]
        linear_saes = {name: LinearSAE(sae, name) for name, sae in named.items()}
        dimensions = {linear.d_in for linear in linear_saes.values()}
        if len(dimensions) > 1:
            raise InputError(f"the SAEs have different d_in: {sorted(dimensions)}")
        source = as_source(activations, named)
        if oracle_k is not None and oracle_k > min(m.d_sae for m in linear_saes.values()):
            raise InputError(f"oracle_k = {oracle_k} exceeds the latents of an SAE")
        runs = {name: Run(name, linear, oracle_k) for name, linear in linear_saes.items()}
        compared = [
            (runs[a], runs[b])
            for a, b in itertools.combinations(runs, 2)
            if across or group_of[a] == group_of[b]
        ]
        pairs = _matched_pairs(compared, seed if chance else None)
        _break_ties(source, runs, [pair for pair in pairs if pair.tie_breaker.is_needed])
        some = FirstRows(max(pair.sizes.n_a + pair.sizes.n_b for pair in pairs) if chance else 0)
        n_samples = _stream(source, runs, pairs, n_oracle_samples, some)
        by_chance = _chance(pairs, some, found_cosine, seed) if chance else []
        promoted = promoted_by_all(source, linear_saes)
    rng = np.random.default_rng(seed)
    tables = latent_tables(
        {name: run.counts for name, run in runs.items()},
        {(pair.a.name, pair.b.name): pair.latents for pair in pairs},
        {name: run.linear.is_zero for name, run in runs.items()},
        found_cosine,
        group_of,
    )
    return PairwiseReport(
        groups=group_of,
        saes=[run.summary(n_oracle_samples) for run in runs.values()],
        pairs=[pair.result(rng) for pair in pairs],
        chance=by_chance,
        latents=tables.latents,
        partners=tables.partners,
        examples={name: run.examples for name, run in runs.items()},
        origin=source.origin(),
        promoted=promoted,
        n_samples=n_samples,
        activations=source.description,
        found_cosine=found_cosine,
        n_zero_rows=source.n_samples - n_samples,
        differences=differences,
    )


def check_settings(n_oracle_samples: int, oracle_k: int | None, found_cosine: float) -> None:
    """Refuse settings of `pairwise_identifiability` that are out of range.

    Raises:
        InputError: One is.
    """
    if n_oracle_samples < 0:
        raise InputError(f"oracle_samples must be >= 0, got {n_oracle_samples}")
    if oracle_k is not None and oracle_k < 1:
        raise InputError(f"oracle_k must be >= 1, got {oracle_k}; oracle_samples 0 leaves it out")
    if not 0 <= found_cosine <= 1:
        raise InputError(f"found must be a cosine between 0 and 1, got {found_cosine}")


def _matched_pairs(compared: Sequence[tuple[Run, Run]], chance_seed: int | None) -> list[Pair]:
    bar = progress_bar(
        compared, desc="Matching dictionaries", unit="pair", disable=len(compared) < 2
    )
    return [Pair(a, b, chance_seed) for a, b in bar]


def _batches(
    source: ActivationSource, runs: Mapping[str, Run], description: str
) -> Iterator[NumberedRows]:
    """The activations but all-zero ones, in batches whose dense codes fit in memory."""
    latents = sum(run.linear.d_sae for run in runs.values())
    size = max(1, min(_MAX_BATCH, _CODE_BYTES // (4 * latents)))
    return source.non_zero_batches(size, description)


def _break_ties(source: ActivationSource, runs: dict[str, Run], pairs: list[Pair]) -> None:
    """A separate pass: agreement is measured under the matching that comes out of it."""
    if not pairs:
        return
    some = {run.name: run for pair in pairs for run in (pair.a, pair.b)}
    for x, _ in _batches(source, runs, "Matching repeated atoms"):
        codes = {name: run.linear.encode(x).codes for name, run in some.items()}
        for pair in pairs:
            pair.tie_breaker.add(codes[pair.a.name], codes[pair.b.name])
    for pair in pairs:
        pair.settle()


def _stream(
    source: ActivationSource,
    runs: dict[str, Run],
    pairs: list[Pair],
    n_oracle_samples: int,
    some: FirstRows,
) -> int:
    """One pass over the activations: every SAE encodes a batch once, for all its pairs. Returns
    the number of activations that are not zero."""
    left = n_oracle_samples
    n_samples = 0
    for batch in _batches(source, runs, "Comparing codes"):
        x = batch.activations
        n_samples += len(x)
        some.add(x)
        codes = {name: run.encode(batch) for name, run in runs.items()}
        for pair in pairs:
            pair.add(codes[pair.a.name].codes, codes[pair.b.name].codes)
        if left > 0:
            for name, run in runs.items():
                run.add_oracle(x[:left], codes[name])
            left -= len(x)
    return n_samples


def _chance(pairs: Sequence[Pair], some: FirstRows, found_cosine: float, seed: int) -> list[Chance]:
    sizes = [pair.sizes for pair in pairs]
    device = pairs[0].a.linear.device
    dictionaries = dictionaries_by_chance(some.rows(), sizes, found_cosine, seed, device)
    return dictionaries + codes_by_chance([pair.by_chance for pair in pairs if pair.by_chance])
