"""When does an SAE find the concepts of toy data? Three conditions of Cui et al. 2025, one at a
time.

    python benchmarks/toy_identifiability.py            # minutes on two cores

x_p = W_p x with 200 concepts in 20 dimensions; x_i is active with probability 1 - S, uniform in
[0, 1]. A tied SAE, codes sigma(W_m x_p) and reconstruction W_m^T codes, is trained on the squared
error. The conditions: sparse latents (S near 1), a sparse activation, a width of 200 or more.
Concepts load the dimensions unevenly, so that the weights of WSAE have something to weigh.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from figures import keep_figure
from jaxtyping import Float
from plotly.colors import qualitative
from plotly.subplots import make_subplots
from provenance import write_result
from recovery_bounds import reweighting_gap
from torch.nn.functional import normalize
from tqdm.auto import tqdm, trange

from sae_lens_isae.identifiability import match_dictionaries
from sae_lens_isae.losses.reweighting import squared_weights

N_CONCEPTS, D_IN, K = 200, 20, 2
SPARSITIES = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99)
WIDTHS = (50, 100, 200, 400)
ALPHAS = (0.0, 0.5, 1.0)
FOUND = 0.9
BATCH, LR, N_TEST = 256, 3e-3, 4096
_THRESHOLD = 0.1


def top_k(pre: torch.Tensor) -> torch.Tensor:
    """The K largest, if positive."""
    values, indices = pre.topk(K, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values.relu())


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda pre: pre,
    "ReLU": torch.relu,
    "JumpReLU": lambda pre: torch.where(pre > _THRESHOLD, pre, 0.0),
    "TopK": top_k,
}


@dataclass(frozen=True)
class Cell:
    """One setting; its seeds are trained together."""

    activation: str = "TopK"
    sparsity: float = 0.99
    width: int = N_CONCEPTS
    alpha: float = 0.0


def make_concepts(n_seeds: int) -> Float[torch.Tensor, "seeds concepts d_in"]:
    """Unit vectors whose coordinates have standard deviations from 1 to 3, relatively."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(1, 3, D_IN)
    return normalize(torch.randn(n_seeds, N_CONCEPTS, D_IN, generator=generator) * scale, dim=-1)


def draw_latents(cell: Cell, n_seeds: int, n: int) -> Float[torch.Tensor, "seeds n concepts"]:
    """Independent latents of toy models of superposition."""
    active = torch.rand(n_seeds, n, N_CONCEPTS) < 1 - cell.sparsity
    return torch.rand(n_seeds, n, N_CONCEPTS) * active


def run(cell: Cell, concepts: torch.Tensor, n_steps: int) -> dict[str, Any]:
    """Train the seeds of one cell and compare them with the concepts."""
    torch.manual_seed(1)
    n_seeds = len(concepts)
    activation = ACTIVATIONS[cell.activation]
    variance = (draw_latents(cell, n_seeds, N_TEST) @ concepts).var(1, correction=0)
    weights = squared_weights(variance, cell.alpha)
    atoms = normalize(torch.randn(n_seeds, cell.width, D_IN), dim=-1).requires_grad_()
    adam = torch.optim.Adam([atoms], lr=LR)
    decay = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min(1.0, 5 * (n_steps - step) / n_steps)
    )
    for _ in trange(n_steps, desc=str(cell), unit="step", leave=False):
        x = draw_latents(cell, n_seeds, BATCH) @ concepts
        rebuilt = activation(x @ atoms.mT) @ atoms
        loss = (weights[:, None] * (x - rebuilt) ** 2).sum(-1).mean(-1)
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
        decay.step()
    return {**vars(cell), **measure(cell, concepts, atoms.detach(), weights)}


@torch.no_grad()
def measure(
    cell: Cell, concepts: torch.Tensor, atoms: torch.Tensor, weights: torch.Tensor
) -> dict[str, Any]:
    """What was found: concepts, which of them fire a latent, and the terms of the gap."""
    latents = draw_latents(cell, len(concepts), N_TEST)
    x = latents @ concepts
    activation = ACTIVATIONS[cell.activation]
    codes = activation(x @ atoms.mT)
    per_seed: dict[str, list[float]] = {
        name: []
        for name in ("found", "mean_cosine", "unexplained", "concepts_per_latent", "latent_error")
    }
    gaps: list[dict[str, float]] = []
    for s in range(len(concepts)):
        match = match_dictionaries(concepts[s], atoms[s], signed=True)
        per_seed["found"].append((match.cosine >= FOUND).sum().item() / N_CONCEPTS)
        per_seed["mean_cosine"].append(match.cosine.clamp_min(0).sum().item() / N_CONCEPTS)
        error = (x[s] - codes[s] @ atoms[s]).square().sum()
        per_seed["unexplained"].append((error / x[s].square().sum()).item())
        # the paper's measure: which concepts, each on its own, activate a latent
        fires = activation(concepts[s] @ atoms[s].T) != 0
        per_seed["concepts_per_latent"].append(fires.float().sum(0).mean().item())
        # what has no partner is a latent that never fires, with a zero atom
        matched, decoder = torch.zeros_like(latents[s]), torch.zeros_like(concepts[s])
        matched[:, match.index_a] = codes[s][:, match.index_b]
        decoder[match.index_a] = atoms[s][match.index_b]
        gap = reweighting_gap(latents[s], matched, concepts[s], decoder, weights[s])
        size = latents[s].square().sum(-1).mean()
        per_seed["latent_error"].append((gap.recovery / size).item())
        gaps.append({name: float(value / size) for name, value in vars(gap).items()})
    return {
        **per_seed,
        "gap": {name: fmean(gap[name] for gap in gaps) for name in gaps[0]},
    }


def counterexamples() -> dict[str, Any]:
    """Each condition fails alone, with the best weights W_m = W_p^T: codes against latents."""
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    close = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-0.6, 0.8]])
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    cases = {
        "all conditions hold": (opposite, opposite, [1, 0, 0], "ReLU"),
        "not sparse: two concepts cancel": (opposite, opposite, [1, 1, 0], "ReLU"),
        "no activation: interference stays": (opposite, opposite, [1, 0, 0], "none"),
        "ReLU where interference is positive": (close, close, [1, 0, 0], "ReLU"),
        "two latents for three concepts": (opposite, square, [0, 1, 0], "ReLU"),
    }
    return {
        case: {
            "x": x,
            "codes": ACTIVATIONS[name](torch.tensor(x).float() @ concepts @ atoms.T).tolist(),
        }
        for case, (concepts, atoms, x, name) in cases.items()
    }


def cells() -> list[Cell]:
    """One condition at a time, from the setting in which all hold."""
    by_sparsity = [Cell(name, s) for name in ACTIVATIONS for s in SPARSITIES]
    by_width = [Cell(name, width=w) for name in ACTIVATIONS for w in WIDTHS]
    weighted = [Cell(sparsity=s, alpha=a) for s in SPARSITIES for a in ALPHAS]
    return list(dict.fromkeys([*by_sparsity, *by_width, *weighted]))


def draw(rows: list[dict[str, Any]]) -> None:
    """Three panels."""
    fig = make_subplots(
        1,
        3,
        subplot_titles=(
            "sparsity S, by activation",
            "width, by activation (S = 0.99)",
            "sparsity S, by WSAE's alpha (TopK)",
        ),
    )

    def line(column: int, of: str, chosen: list[dict[str, Any]], name: str, colour: str) -> None:
        fig.add_scatter(
            x=[str(row[of]) for row in chosen],
            y=[fmean(row["mean_cosine"]) for row in chosen],
            error_y={
                "array": [max(row["mean_cosine"]) - fmean(row["mean_cosine"]) for row in chosen],
                "arrayminus": [
                    fmean(row["mean_cosine"]) - min(row["mean_cosine"]) for row in chosen
                ],
            },
            name=name,
            line={"color": colour},
            showlegend=column != 2,
            row=1,
            col=column,
        )

    def rows_where(**fixed: Any) -> list[dict[str, Any]]:
        return [row for row in rows if all(row[k] == v for k, v in fixed.items())]

    for name, colour in zip(ACTIVATIONS, qualitative.D3, strict=False):
        plain = {"activation": name, "alpha": 0.0}
        line(1, "sparsity", rows_where(**plain, width=N_CONCEPTS), name, colour)
        chosen = sorted(rows_where(**plain, sparsity=0.99), key=lambda row: row["width"])
        line(2, "width", chosen, name, colour)
    for alpha, colour in zip(ALPHAS, qualitative.D3[4:], strict=False):
        chosen = rows_where(activation="TopK", width=N_CONCEPTS, alpha=alpha)
        chosen.sort(key=lambda row: row["sparsity"])
        line(3, "sparsity", chosen, f"TopK, alpha {alpha:g}", colour)
    fig.update_yaxes(title="mean cosine with the concepts", range=[0, 1.02], col=1)
    fig.update_yaxes(range=[0, 1.02])
    keep_figure("toy_identifiability", fig)


def main() -> None:
    """All cells."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    start = time.perf_counter()
    concepts = make_concepts(args.seeds)
    rows = [run(cell, concepts, args.steps) for cell in tqdm(cells(), desc="toy", unit="cell")]
    draw(rows)
    setting = {"concepts": N_CONCEPTS, "d_in": D_IN, "k": K, "batch": BATCH, "lr": LR, **vars(args)}
    write_result(
        "toy_identifiability",
        {
            "setting": setting,
            "seconds": time.perf_counter() - start,
            "counterexamples": counterexamples(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
