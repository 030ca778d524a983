"""The cells of `table2.py`, study by study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from real_cells import Cell

Rates = Mapping[str, float]
"""The learning rate of every variant."""
SLACK = 1.02
"""Errors up to 2% above the least of a grid count as equal."""
_GRID = {
    "iSAE-LS": (2e-3, 4e-3, 8e-3),
    "iSAE-ME": (1e-3, 2e-3, 4e-3),
    "iSAE": (2e-3, 4e-3, 8e-3),
    "AbsTopK": (2e-3, 4e-3, 8e-3),
    "TopK": (1e-3, 2e-3, 4e-3),
}
_SIX = "iSAE, six seeds"
_FIXED = "iSAE-ME, atoms fixed"


def best_rates(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The learning rate of every variant whose grid is there: of those with nearly the least error
    the one with the best IoU."""
    by_name = {row["cell"]: row for row in rows}
    best: dict[str, float] = {}
    for variant, of_variant in _GRID.items():
        found = [by_name.get(_on_grid(variant, lr)) for lr in of_variant]
        if all(found):
            least = min(row["mse"] for row in found)
            near = [row for row in found if row["mse"] <= SLACK * least]
            best[variant] = max(near, key=lambda row: row["sae_iou"])["setting"]["lr"]
    return best


def _on_grid(variant: str, lr: float) -> str:
    return f"{variant}, lr {lr:g}"


def chance(rates: Rates) -> Iterator[Cell]:  # noqa: ARG001
    """Dictionaries that no training has seen."""
    for variant in ("isotropic", "covariance", "tokens"):
        yield Cell(name=f"by chance, {variant}", variant=variant, lr=0.0)


def grid(rates: Rates) -> Iterator[Cell]:  # noqa: ARG001
    """The learning rate of every variant."""
    for variant, of_variant in _GRID.items():
        for lr in of_variant:
            yield Cell(name=_on_grid(variant, lr), variant=variant, lr=lr)


def least_squares(rates: Rates) -> Iterator[Cell]:  # noqa: ARG001
    """How the solved code is trained, and the weight of aRIP with it."""
    base = Cell(name="", variant="iSAE-LS", lr=4e-3)
    reaches = {"linear_loss_reaches_atoms": True}
    changes: dict[str, dict[str, Any]] = {
        "linear loss reaches atoms": reaches,
        "linear loss 0.3 reaches atoms": {**reaches, "linear_loss_weight": 0.3},
        "linear loss 3 reaches atoms": {**reaches, "linear_loss_weight": 3.0},
        "solved in the last third": {"solve_after_steps": 2 * base.n_steps // 3},
        "aRIP 0": {"arip_weight": 0.0},
        "aRIP 0.003": {"arip_weight": 0.003},
        "aRIP 0.03": {"arip_weight": 0.03},
    }
    for change, settings in changes.items():
        yield replace(base, name=f"iSAE-LS, {change}", sae=settings)
    for lr in (2e-3, 4e-3):
        name = f"iSAE-LS, non-negative, lr {lr:g}"
        yield replace(base, name=name, lr=lr, sae={"activation": "topk"})
    yield replace(base, name="iSAE, aRIP 0.003", variant="iSAE", sae={"arip_weight": 0.003})
    yield replace(base, name="iSAE, aRIP 0.03", variant="iSAE", sae={"arip_weight": 0.03})


def candidates(rates: Rates) -> Iterator[Cell]:
    """Among how many latents the solution of iSAE-LS chooses, trained so and afterwards."""
    base = Cell(name="", variant="iSAE-LS", lr=4e-3)
    for m in (1.25, 1.5, 2, 3):
        yield replace(base, name=f"iSAE-LS, m = {m:g}", sae={"candidates": m})
    for m in (1.5, 2):
        name = f"iSAE-LS, m = {m:g}, lr 0.002"
        yield replace(base, name=name, lr=2e-3, sae={"candidates": m})
    for variant, lr in rates.items():
        if variant != "iSAE-ME":
            for m in (1.25, 1.375, 1.5, 2, 2.25) if variant == "iSAE-LS" else (1.25, 1.5, 2):
                of = name_of_long(variant)
                name = f"{of}, m = {m:g} afterwards"
                yield Cell(name=name, variant="refit", lr=lr, of=of, sae={"candidates": m})


def frontier(rates: Rates) -> Iterator[Cell]:  # noqa: ARG001
    """How freely the later steps of iSAE-ME choose the support."""
    base = Cell(name="", variant="iSAE-ME", lr=2e-3)
    for n_steps, of_steps in {5: (1, 1.5, 2, 4, 8), 3: (2, 4, None), 2: (2, None)}.items():
        for candidates in of_steps:
            settings = {"encoder_steps": n_steps, "candidates": candidates}
            yield replace(base, name=_free(n_steps, candidates), sae=settings)
    for n_steps, candidates in ((5, 1.5), (5, 2), (2, None)):
        name = f"{_free(n_steps, candidates)}, lr 0.004"
        settings = {"encoder_steps": n_steps, "candidates": candidates}
        yield replace(base, name=name, lr=4e-3, sae=settings)
    first = {"encoder_warm_up_steps": base.n_steps // 2}
    yield replace(base, name="iSAE-ME, one step first", sae=first)
    yield replace(base, name="iSAE-ME, aRIP 0.01", sae={"arip_weight": 0.01})
    for candidates in (2, None):
        yield Cell(
            name=f"{_free(5, candidates)}, atoms fixed to those of iSAE",
            variant=_FIXED,
            lr=2e-3,
            sae={"encoder_steps": 5, "candidates": candidates},
            of=_SIX,
        )


def _free(n_steps: int, candidates: float | None) -> str:
    m = "all" if candidates is None else f"{candidates:g}"
    return f"iSAE-ME, T = {n_steps}, m = {m}"


def long(rates: Rates) -> Iterator[Cell]:
    """Every variant at the best of its grid, four times as long."""
    for variant, lr in rates.items():
        yield Cell(name=name_of_long(variant), variant=variant, lr=lr, n_tokens=160e6, n_seeds=3)


def name_of_long(variant: str) -> str:
    """Of the cell of the longest runs of a variant."""
    return f"{variant}, 160 M tokens"


def averaged(rates: Rates) -> Iterator[Cell]:
    """Every variant as long, its weights averaged at the end."""
    long_run = {"n_tokens": 160e6, "n_seeds": 3}
    for variant, lr in rates.items():
        name = name_of_averaged(variant)
        yield Cell(name=name, variant=variant, lr=lr, averaged=1 / 3, **long_run)
    if "iSAE" in rates:
        name = f"{name_of_long('iSAE')}, averaged over the last tenth"
        yield Cell(name=name, variant="iSAE", lr=rates["iSAE"], averaged=0.1, **long_run)


def longer(rates: Rates) -> Iterator[Cell]:
    """More candidates in a long run, and after one whose weights were averaged."""
    long_run = {"n_tokens": 160e6, "n_seeds": 3}
    for m in (1.25, 1.5):
        name = name_of_long(f"iSAE-LS, m = {m:g}")
        settings = {"candidates": m}
        yield Cell(name=name, variant="iSAE-LS", lr=4e-3, sae=settings, **long_run)
    for m in (1.25, 1.375, 1.5, 2, 2.25, 2.5) if "iSAE-LS" in rates else ():
        of = name_of_averaged("iSAE-LS")
        settings = {"lr": rates["iSAE-LS"], "sae": {"candidates": m}, "n_seeds": 3}
        yield Cell(name=f"{of}, m = {m:g} afterwards", variant="refit", of=of, **settings)


def name_of_averaged(variant: str) -> str:
    """Of the cell of the longest runs of a variant, with their weights averaged at the end."""
    return f"{name_of_long(variant)}, averaged"


def consensus(rates: Rates) -> Iterator[Cell]:
    """One SAE of three seeds against one of three others."""
    if "iSAE" not in rates:
        return
    for averaged, name in ((0.0, _SIX), (1 / 3, f"{_SIX}, averaged")):
        yield Cell(name=name, variant="iSAE", lr=rates["iSAE"], n_seeds=6, averaged=averaged)
        for at_least in (2, 3):
            kept = f"{name.replace('six seeds', 'consensus')}, in {at_least} of 3"
            settings = {"at_least": at_least}
            yield Cell(name=kept, variant="consensus", lr=1e-3, of=name, sae=settings)


def moves(rates: Rates) -> Iterator[Cell]:
    """What tells two seeds apart, and how long they train."""
    for variant in ("iSAE", "TopK"):
        if variant not in rates:
            continue
        base = Cell(name="", variant=variant, lr=rates[variant])
        yield replace(base, name=f"{variant}, same weights", vary="data")
        yield replace(base, name=f"{variant}, same data", vary="init")
        yield replace(base, name=f"{variant}, 80 M tokens", n_tokens=80e6)


def levers(rates: Rates) -> Iterator[Cell]:
    """One change at a time to iSAE."""
    if "iSAE" not in rates:
        return
    base = Cell(name="", variant="iSAE", lr=rates["iSAE"])
    yield replace(base, name="iSAE, weights averaged over the last tenth", averaged=0.1)
    for share, tail in ((1 / 3, "third"), (1 / 2, "half")):
        yield replace(base, name=f"iSAE, weights averaged over the last {tail}", averaged=share)
    late = "iSAE, weights averaged over the last third, rate falling over the last tenth"
    yield replace(base, name=late, averaged=1 / 3, decay=0.1)
    for variant, lr in rates.items():
        if variant != "iSAE":
            name = f"{variant}, weights averaged over the last third"
            yield Cell(name=name, variant=variant, lr=lr, averaged=1 / 3)
    for batch in (512, 1024, 4096, 8192):
        yield replace(base, name=f"iSAE, batches of {batch}", batch=batch)
    yield replace(base, name="iSAE, batches of 512, lr 0.002", batch=512, lr=2e-3)
    for variant in ("iSAE-LS", "TopK"):
        if variant in rates:
            name = f"{variant}, batches of 1024"
            yield Cell(name=name, variant=variant, lr=rates[variant], batch=1024)
    yield replace(base, name="iSAE, learning rate decayed from the start", decay=0.95)
    yield replace(base, name="iSAE, aRIP ramped in", arip_ramp=0.5)
    whitening = {"normalize_activations": "covariance_whitening"}
    yield replace(base, name="iSAE, whitened", sae=whitening)
    consistency = {"self_consistency_weight": 0.1}
    yield replace(base, name="iSAE, self-consistency 0.1", sae=consistency)
    yield replace(base, name="iSAE, WSAE 0.5", sae={"wsae_alpha": 0.5})
    moved = {"resample_until": 7 * base.n_steps // 10, "resample_every": 500}
    yield replace(base, name="iSAE, dead and duplicate latents moved", sae=moved)


def outside(rates: Rates) -> Iterator[Cell]:
    """The mean and principal directions left out of what every SAE sees."""
    for n in (4, 0, 16):
        for variant, lr in rates.items():
            name = f"{variant}, {n} directions outside"
            yield Cell(name=name, variant=variant, lr=lr, outside=n)


def width(rates: Rates) -> Iterator[Cell]:
    """Four times the latents, at the rate that is best for 4096 and at half of it."""
    for variant, lr in rates.items():
        cell = Cell(name=f"{variant}, 16384 latents", variant=variant, lr=lr, d_sae=16_384)
        yield cell
        yield replace(cell, name=f"{cell.name}, lr {lr / 2:g}", lr=lr / 2)


def chosen(rates: Rates) -> Iterator[Cell]:
    """Every variant at the best of the grid, on other activations than those of the grid."""
    for variant, lr in rates.items():
        yield Cell(name=f"{variant}, as chosen", variant=variant, lr=lr)
    settings = {"candidates": 1.5}
    name = "iSAE-LS, m = 1.5, as chosen"
    yield Cell(name=name, variant="iSAE-LS", lr=4e-3, sae=settings)


STUDIES: dict[str, Callable[[Rates], Iterator[Cell]]] = {
    "chance": chance,
    "grid": grid,
    "long": long,
    "least_squares": least_squares,
    "candidates": candidates,
    "frontier": frontier,
    "consensus": consensus,
    "averaged": averaged,
    "longer": longer,
    "moves": moves,
    "levers": levers,
    "outside": outside,
    "width": width,
    "chosen": chosen,
}
"""In the order of the table. Those after the grid take their learning rates from it."""
