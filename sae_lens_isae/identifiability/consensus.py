"""One SAE from several training runs: the latents that recur in them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from sae_lens import SAE, TrainingSAE
from scipy.sparse.csgraph import connected_components

from sae_lens_isae.errors import InputError
from sae_lens_isae.identifiability.matching import match_dictionaries
from sae_lens_isae.inputs.comparable import check_comparable
from sae_lens_isae.inputs.linear_sae import LinearSAE
from sae_lens_isae.inputs.saes import AnySAEs, named_saes
from sae_lens_isae.progress import progress_bar


@dataclass(frozen=True, kw_only=True)
class Consensus:
    """Latents that several SAEs have in common, one row each, those of most SAEs first."""

    names: list[str]
    """Of the SAEs, in the order of the columns."""
    members: Int[torch.Tensor, "recurring saes"]
    """Which latent it is in each SAE; -1 in one without it."""
    signs: Float[torch.Tensor, "recurring saes"]
    """+1 or -1, by which the members are aligned."""
    cosine: Float[torch.Tensor, " recurring"]
    """Mean cosine of the members with their mean."""


@torch.no_grad()
def recurring_latents(
    saes: Mapping[str, LinearSAE], at_least: int, found_cosine: float = 0.9
) -> Consensus:
    """Group the latents of several SAEs that stand for the same direction.

    Dictionaries are matched pair by pair. Latents that are matched with a cosine of at least
    `found_cosine`, after their sign where codes have signs, belong together, and so do those that
    they belong to. Of several latents of one SAE in a group the one nearest to the group's mean
    stays.

    Args:
        at_least: SAEs in which a latent must be found.

    Raises:
        InputError: A setting is out of range, or no latent recurs so often.
    """
    _check_settings(len(saes), at_least, found_cosine)
    names = list(saes)
    sizes = [linear.d_sae for linear in saes.values()]
    starts = np.cumsum([0, *sizes])
    edges: list[np.ndarray] = []
    pairs = list(itertools.combinations(range(len(names)), 2))
    for i, j in progress_bar(pairs, desc="Matching dictionaries", unit="pair"):
        a, b = saes[names[i]], saes[names[j]]
        match = match_dictionaries(a.atoms, b.atoms, signed=not (a.signed or b.signed))
        found = (match.cosine >= found_cosine).numpy()
        ends = (starts[i] + match.index_a.numpy(), starts[j] + match.index_b.numpy())
        edges.append(np.stack(ends)[:, found])
    rows, columns = np.concatenate(edges, axis=1)
    graph = (np.ones(len(rows), dtype=bool), (rows, columns))
    n = starts[-1]
    _, group = connected_components(scipy.sparse.coo_array(graph, shape=(n, n)), directed=False)
    atoms = torch.cat([linear.atoms.cpu() for linear in saes.values()])
    order = np.argsort(group, kind="stable")
    found_groups = [
        _group(torch.from_numpy(members), starts, atoms)
        for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
        if len(members) >= at_least
    ]
    kept = [each for each in found_groups if int((each[0] >= 0).sum()) >= at_least]
    if not kept:
        raise InputError(
            f"no latent recurs in {at_least} of {len(saes)} SAEs with a cosine of {found_cosine}; "
            "lower --at-least or --cosine"
        )
    members, signs, cosine = (torch.stack(column) for column in zip(*kept, strict=True))
    best = torch.argsort((members >= 0).sum(1) + cosine / 2, descending=True)
    return Consensus(names=names, members=members[best], signs=signs[best], cosine=cosine[best])


def _group(
    nodes: Int[torch.Tensor, " nodes"],
    starts: np.ndarray,
    atoms: Float[torch.Tensor, "all d_in"],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Members, signs and cosine of one group, at most one latent for each SAE."""
    vectors = atoms[nodes]
    aligned = vectors * torch.where(vectors @ vectors[0] < 0, -1.0, 1.0)[:, None]
    to_mean = torch.nn.functional.normalize(aligned.mean(0), dim=0)
    along = vectors @ to_mean
    n_saes = len(starts) - 1
    members = torch.full((n_saes,), -1)
    signs = torch.ones(n_saes)
    owner = np.searchsorted(starts, nodes.numpy(), side="right") - 1
    best = torch.zeros(n_saes)
    for node, sae, cosine in zip(nodes.tolist(), owner.tolist(), along.tolist(), strict=True):
        if abs(cosine) > best[sae]:
            best[sae] = abs(cosine)
            members[sae] = node - int(starts[sae])
            signs[sae] = 1.0 if cosine > 0 else -1.0
    return members, signs, best[members >= 0].mean()


@torch.no_grad()
def consensus_sae(
    saes: AnySAEs, *, at_least: int | None = None, found_cosine: float = 0.9
) -> SAE[Any]:
    """One SAE from several of the same architecture, with the latents that recur in them.

    Every latent's weights are the means over the SAEs that have it, after its sign: atoms, encoder
    directions, thresholds. Biases of the decoder are averaged over all.

    Args:
        saes: Trained alike with different seeds, loaded or by their names.
        at_least: SAEs in which a latent must be found; by default more than half.
        found_cosine: From which cosine on it counts as found again.

    Raises:
        InputError: The SAEs are not alike, or no latent recurs.

    Examples:
        >>> import torch
        >>> from sae_lens import TopKSAE, TopKSAEConfig
        >>> sae = TopKSAE(TopKSAEConfig(d_in=8, d_sae=16, k=2))
        >>> consensus_sae({"a": sae, "b": sae}).cfg.d_sae
        16
    """
    named = named_saes(saes)
    check_comparable(named)
    _check_alike(named)
    linear = {name: LinearSAE(sae, name) for name, sae in named.items()}
    at_least = len(named) // 2 + 1 if at_least is None else at_least
    consensus = recurring_latents(linear, at_least, found_cosine)
    return averaged(list(named.values()), consensus)


def averaged(saes: Sequence[SAE[Any]], consensus: Consensus) -> SAE[Any]:
    """The SAE whose latents are the means of the consensus' members."""
    first = saes[0]
    cfg = copy.deepcopy(first.cfg)
    cfg.d_sae = len(consensus.members)
    k = getattr(cfg, "k", None)
    if k is not None and k > cfg.d_sae:
        raise InputError(f"{cfg.d_sae} latents recur, fewer than k = {k}; lower --at-least")
    cfg.metadata.consensus_of = [str(name) for name in consensus.names]
    # the first one's are not those of the result
    cfg.metadata.seed = cfg.metadata.data_seed = None
    there = (consensus.members >= 0).float()
    share = there / there.sum(1, keepdim=True)
    states = [sae.state_dict() for sae in saes]
    result = type(first)(cfg)
    weights: dict[str, torch.Tensor] = {}
    for name, empty in result.state_dict().items():
        if name == "b_dec":
            weights[name] = torch.stack([state[name] for state in states]).mean(0)
            continue
        axis = 1 if name == "W_enc" else 0
        total = torch.zeros_like(empty)
        for state, members, signs, of_sae in zip(
            states, consensus.members.T, consensus.signs.T, share.T, strict=True
        ):
            factor = (of_sae * (signs if name in _WITH_SIGN else 1.0)).to(total)
            picked = state[name].index_select(axis, members.clamp_min(0).to(total.device))
            total += picked * factor.view([-1 if i == axis else 1 for i in range(total.ndim)])
        weights[name] = total
    norms = torch.stack([state["W_dec"].norm(dim=-1).mean() for state in states]).mean()
    weights["W_dec"] = torch.nn.functional.normalize(weights["W_dec"], dim=-1) * norms
    result.load_state_dict(weights)
    return result.eval()


_WITH_SIGN = ("W_enc", "W_dec", "b_enc")


def _check_settings(n_saes: int, at_least: int, found_cosine: float) -> None:
    if n_saes < 2:
        raise InputError(f"a consensus needs two or more SAEs, got {n_saes}")
    if not 2 <= at_least <= n_saes:
        raise InputError(f"at_least must be between 2 and the {n_saes} SAEs, got {at_least}")
    if not 0 < found_cosine <= 1:
        raise InputError(f"cosine must be above 0 and at most 1, got {found_cosine}")


_ALIKE = (
    "d_in",
    "d_sae",
    "k",
    "activation",
    "step_matrix",
    "candidates",
    "normalize_activations",
)


def _check_alike(saes: Mapping[str, SAE[Any]]) -> None:
    first_name, first = next(iter(saes.items()))
    for name, sae in saes.items():
        if isinstance(sae, TrainingSAE):
            raise InputError(f"{name} is a training SAE; save it with save_inference_model")
        for setting in _ALIKE:
            one, other = (getattr(each.cfg, setting, None) for each in (first, sae))
            if one != other:
                raise InputError(
                    f"{first_name} and {name} differ in {setting}: {one} and {other}; a consensus "
                    "is made of SAEs that were trained alike"
                )
        if sae.cfg.architecture() != first.cfg.architecture():
            raise InputError(
                f"{first_name} is {first.cfg.architecture()!r}, {name} {sae.cfg.architecture()!r}; "
                "a consensus is made of SAEs that were trained alike"
            )
        if getattr(sae.cfg, "step_matrix", None) == "full":
            raise InputError("a consensus of iSAE-ME needs step_matrix='tied'")
