"""Latent self-consistency where the latents are known: Figures 1 to 3 of 'Latent Recovery',
appendix B.2.

    python benchmarks/latent_recovery.py            # 30 seeds; --seeds 3 for a look
    python benchmarks/latent_recovery.py --draw     # the figures again, from the result file

Blind mixing x_p = W_p x with the decoder held at W_p; an encoder relu(x_p W_enc) without biases is
trained on reconstruction + lambda * certificate, or with the weights of WSAE. Every k, seed and
setting is a model of its own; all of one correlation rho are trained as one batched problem.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import torch
from figures import keep_figure
from jaxtyping import Float
from plotly.colors import qualitative
from plotly.subplots import make_subplots
from provenance import RESULTS, write_result
from recovery_bounds import lemma_1, reweighting_gap, theorem_2
from scipy.stats import spearmanr
from tqdm.auto import trange

from sae_lens_isae.losses.reweighting import squared_weights
from sae_lens_isae.synthetic import UniformSparseGenerator, mixture_atoms

N_LATENTS, D_IN = 64, 32
KS = (2, 4, 8, 16)
LAMBDAS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
ALPHAS = (0.5, 1.0)
CORRELATIONS = (0.0, 0.1)
N_STEPS, BATCH, LR = 1200, 128, 3e-3
N_TEST = 1024
SETTINGS = [f"lambda {value:g}" for value in LAMBDAS] + [f"WSAE {alpha:g}" for alpha in ALPHAS]
METRICS = ("latent_error", "reconstruction", "certificate", "squared_certificate")


@dataclass(frozen=True)
class Problem:
    """All models of one correlation: [setting, k and seed, ...]."""

    concepts: Float[torch.Tensor, "groups latents d_in"]
    squared_weights: Float[torch.Tensor, "settings groups d_in"]
    weight: Float[torch.Tensor, "settings 1"]
    """lambda of every setting."""
    n_seeds: int


def draw_latents(n_seeds: int, n: int) -> Float[torch.Tensor, "groups samples latents"]:
    """Fresh latents, k of them active, for every k and seed."""
    draws = [UniformSparseGenerator(N_LATENTS, k).sample(n_seeds * n) for k in KS]
    return torch.cat([draw.view(n_seeds, n, N_LATENTS) for draw in draws])


def make_problem(correlation: float, n_seeds: int) -> Problem:
    """The concepts of every seed, and what each setting trains with."""
    concepts = torch.stack(
        [mixture_atoms(N_LATENTS, D_IN, 1, correlation, seed) for seed in range(n_seeds)]
    ).repeat(len(KS), 1, 1)
    variance = (draw_latents(n_seeds, 4096) @ concepts).var(1, correction=0)
    exponents = [*(0.0 for _ in LAMBDAS), *ALPHAS]
    weights = torch.stack([squared_weights(variance, alpha) for alpha in exponents])
    lambdas = torch.tensor([*LAMBDAS, *(0.0 for _ in ALPHAS)])
    return Problem(concepts, weights, lambdas[:, None], n_seeds)


def codes_and_again(
    problem: Problem, encoder: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, reconstructions, and the codes of the reconstructions."""
    codes = torch.relu(x @ encoder)
    rebuilt = codes @ problem.concepts
    return codes, rebuilt, torch.relu(rebuilt @ encoder)


def train(problem: Problem, n_steps: int) -> Float[torch.Tensor, "settings groups d_in latents"]:
    """The encoders of all models."""
    shape = (len(SETTINGS), *problem.concepts.mT.shape)
    # the same start for every setting of a k and seed
    start = torch.randn(shape[1:]) / D_IN**0.5
    encoder = start.expand(shape).clone().requires_grad_()
    adam = torch.optim.Adam([encoder], lr=LR)
    decay = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min(1.0, 5 * (n_steps - step) / n_steps)
    )
    gamma = problem.squared_weights[..., None, :]
    for _ in trange(n_steps, desc="latent recovery", unit="step"):
        x = draw_latents(problem.n_seeds, BATCH) @ problem.concepts
        codes, rebuilt, again = codes_and_again(problem, encoder, x)
        loss = (gamma * (x - rebuilt) ** 2).sum(-1).mean(-1)
        loss = loss + problem.weight * ((again - codes) ** 2).sum(-1).mean(-1)
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
        decay.step()
    return encoder.detach()


def by_k(problem: Problem, values: torch.Tensor) -> list[dict[str, list[float]]]:
    """Mean and standard error over seeds, for every setting a list over k."""
    grouped = values.view(-1, len(KS), problem.n_seeds)
    error = grouped.std(-1) / problem.n_seeds**0.5
    return [
        {"mean": mean, "standard_error": spread}
        for mean, spread in zip(grouped.mean(-1).tolist(), error.tolist(), strict=True)
    ]


@torch.no_grad()
def measure(problem: Problem, encoder: torch.Tensor) -> dict[str, Any]:
    """Errors, certificate and bounds on fresh samples."""
    latents = draw_latents(problem.n_seeds, N_TEST)
    x = latents @ problem.concepts
    codes, rebuilt, again = codes_and_again(problem, encoder, x)
    error, moved = (codes - latents).norm(dim=-1), (again - codes).norm(dim=-1)
    values = {
        "latent_error": error.mean(-1),
        "reconstruction": (x - rebuilt).norm(dim=-1).mean(-1),
        "certificate": moved.mean(-1),
        "squared_certificate": moved.square().mean(-1),
    }
    lower = theorem_2(codes, again, encoder, problem.concepts)
    ideal = torch.relu(x @ problem.concepts.mT)
    ideal_again = torch.relu(ideal @ problem.concepts @ problem.concepts.mT)
    ideal_lower = theorem_2(ideal, ideal_again, problem.concepts.mT, problem.concepts)
    lemma_error, upper = lemma_1(latents, ideal, problem.concepts)
    gap = reweighting_gap(
        latents, codes, problem.concepts, problem.concepts, problem.squared_weights
    )
    rank = [
        spearmanr(m, e).statistic for m, e in zip(moved[0].numpy(), error[0].numpy(), strict=True)
    ]
    rounding = 1 + 1e-5
    return {
        "settings": {
            name: {metric: by_k(problem, values[metric])[i] for metric in METRICS}
            | {
                "interference_over_recovery": by_k(problem, gap.interference / gap.recovery)[i],
                "lower_bound_over_error": by_k(problem, (lower / error).mean(-1))[i],
            }
            for i, name in enumerate(SETTINGS)
        },
        "spearman_at_lambda_0": by_k(problem, torch.tensor(rank))[0],
        "theorem_2_holds": (lower <= error * rounding).float().mean().item(),
        "ideal_encoder": {
            "theorem_2_holds": (ideal_lower <= (ideal - latents).norm(dim=-1) * rounding)
            .float()
            .mean()
            .item(),
            "lemma_1_holds": (lemma_error <= upper * rounding).float().mean().item(),
            "lemma_1_error_over_bound": by_k(problem, (lemma_error / upper).mean(-1))[0],
            "latent_error": by_k(problem, (ideal - latents).norm(dim=-1).mean(-1))[0],
        },
    }


def claims(found: dict[str, Any]) -> dict[str, Any]:
    """What 'Latent Recovery' says of this study, and for which k it came out."""
    swept = [found["settings"][name] for name in SETTINGS[: len(LAMBDAS)]]

    def means(metric: str, i: int) -> list[float]:
        return [setting[metric]["mean"][i] for setting in swept]

    def falls(values: list[float]) -> bool:
        return all(b < a for a, b in pairwise(values))

    spearman = found["spearman_at_lambda_0"]["mean"]
    errors = {k: means("latent_error", i) for i, k in enumerate(KS)}
    return {
        "certificate_falls_monotonically_for_k": [
            k for i, k in enumerate(KS) if falls(means("certificate", i))
        ],
        "squared_certificate_falls_monotonically_for_k": [
            k for i, k in enumerate(KS) if falls(means("squared_certificate", i))
        ],
        "lambdas_with_less_latent_error_than_0": {
            k: [value for value, error in zip(LAMBDAS, of_k, strict=True) if error < of_k[0]]
            for k, of_k in errors.items()
        },
        "least_latent_error_over_that_of_lambda_0": {
            k: min(of_k) / of_k[0] for k, of_k in errors.items()
        },
        "spearman_is_highest_at_k": KS[spearman.index(max(spearman))],
    }


def draw(correlation: float, found: dict[str, Any]) -> None:
    """Figures 1 to 3."""
    shown = ("latent_error", "reconstruction", "certificate")
    fig = make_subplots(
        1, 4, subplot_titles=("latent error", "reconstruction", "certificate", "Spearman, lambda 0")
    )
    swept = SETTINGS[1 : len(LAMBDAS)]
    for colour, (i, k) in zip(qualitative.D3, enumerate(KS), strict=False):
        for column, metric in enumerate(shown, 1):
            settings = found["settings"]
            at = [settings[name][metric] for name in swept]
            fig.add_scatter(
                x=LAMBDAS[1:],
                y=[a["mean"][i] for a in at],
                error_y={"array": [a["standard_error"][i] for a in at]},
                name=f"k = {k}",
                legendgroup=str(k),
                showlegend=column == 1,
                line={"color": colour},
                row=1,
                col=column,
            )
            for name, dash in (("lambda 0", "dash"), *((n, "dot") for n in SETTINGS[-2:])):
                fig.add_hline(
                    y=settings[name][metric]["mean"][i],
                    line={"color": colour, "dash": dash, "width": 1},
                    row=1,
                    col=column,
                )
    rank = found["spearman_at_lambda_0"]
    fig.add_trace(
        go.Scatter(
            x=KS,
            y=rank["mean"],
            error_y={"array": rank["standard_error"]},
            showlegend=False,
            line={"color": "#444"},
        ),
        row=1,
        col=4,
    )
    for column in (1, 2, 3):
        fig.update_xaxes(type="log", title="lambda", tickvals=LAMBDAS[1:], row=1, col=column)
        fig.update_yaxes(type="log", row=1, col=column)
    fig.update_xaxes(type="log", title="k", tickvals=KS, row=1, col=4)
    fig.update_layout(
        title=f"rho = {correlation:g}; dashed: lambda = 0, dotted: WSAE with alpha 0.5 and 1"
    )
    keep_figure(f"latent_recovery_rho_{correlation:g}", fig)


def main() -> None:
    """Both correlations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=N_STEPS)
    parser.add_argument("--draw", action="store_true", help="draw what was measured and stop")
    args = parser.parse_args()
    if args.draw:
        kept = json.loads((RESULTS / "latent_recovery.json").read_text())
        for correlation in CORRELATIONS:
            draw(correlation, kept[f"rho {correlation:g}"])
        return
    start = time.perf_counter()
    results: dict[str, Any] = {}
    for correlation in CORRELATIONS:
        torch.manual_seed(0)
        problem = make_problem(correlation, args.seeds)
        found = measure(problem, train(problem, args.steps))
        draw(correlation, found)
        results[f"rho {correlation:g}"] = {"claims": claims(found), **found}
    setting = {
        "latents": N_LATENTS,
        "d_in": D_IN,
        "k": KS,
        "seeds": args.seeds,
        "steps": args.steps,
        "batch": BATCH,
        "lr": LR,
        "test_samples": N_TEST,
    }
    seconds = time.perf_counter() - start
    write_result("latent_recovery", {"setting": setting, "seconds": seconds, **results})


if __name__ == "__main__":
    main()
