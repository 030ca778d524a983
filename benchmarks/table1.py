"""Table 1 of Nelson et al. 2026: four variants on two kinds of synthetic data, three seeds each.

    python benchmarks/table1.py                       # everything
    python benchmarks/table1.py --data iid --variants AbsTopK iSAE-ME
    python benchmarks/table1.py --data iid --variants iSAE-ME --recipe paper
    python benchmarks/table1.py --print               # the table from what was measured so far

A cell is one training run, a process of its own; a row is compared once its cells are there. What
`results/table1.json` holds, or as a cell the work folder, is not trained again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from parallel import kept_rows, run_all
from provenance import keep_result, provenance
from synthetic_study import PAPER, RECIPES, SETTING, SIZES, compare, recipe, table_lines, train

from sae_lens_isae.inputs.saes import load_sae
from sae_lens_isae.synthetic import GENERATORS

SEEDS = (0, 1, 2)
VARIANTS = ("TopK", "AbsTopK", "iSAE", "iSAE-ME")


def train_cell(data: str, variant: str, seed: int, args: argparse.Namespace, out: Path) -> None:
    """Train one SAE and keep it."""
    start = time.perf_counter()
    samples = GENERATORS[data](**SIZES, device=args.device)
    schedule, changes = recipe(args.recipe, variant, args.steps)
    sae = train(samples, variant, seed, schedule, changes)
    seconds = time.perf_counter() - start
    sae.save_inference_model(out)
    (out / "seconds.json").write_text(json.dumps(seconds))


def make_row(
    data: str, variant: str, folders: Sequence[Path], args: argparse.Namespace
) -> dict[str, Any]:
    """Compare all pairs of seeds."""
    saes = {folder.name: load_sae(str(folder), device=args.device) for folder in folders}
    return {
        "data": data,
        "recipe": args.recipe,
        **compare(variant, saes, GENERATORS[data](**SIZES, device=args.device)),
        "training_seconds": [json.loads((f / "seconds.json").read_text()) for f in folders],
        "made": provenance(),
    }


def make_rows(
    wanted: Sequence[tuple[str, str]], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Train the missing cells, several at a time, and yield each row once its cells are there."""
    work = args.work / args.recipe
    folders = {row: [work / Path(*row) / f"seed_{s}" for s in SEEDS] for row in wanted}
    missing = [
        (row, folder)
        for row in wanted
        for folder in folders[row]
        if not (folder / "seconds.json").exists()
    ]
    open_rows = {row: sum(m[0] == row for m in missing) for row in wanted}
    yield from (make_row(*row, folders[row], args) for row in wanted if not open_rows[row])
    commands = [
        [sys.executable, *sys.argv, "--cell", *row, folder.name.removeprefix("seed_")]
        for row, folder in missing
    ]
    for done in run_all(commands, [f / "log" for _, f in missing], args.jobs, "table 1"):
        row = missing[done][0]
        open_rows[row] -= 1
        if not open_rows[row]:
            yield make_row(*row, folders[row], args)


def main() -> None:
    """Every row is kept as soon as it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=list(PAPER), default=list(PAPER))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--recipe", choices=list(RECIPES), default="ours")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument(
        "--jobs",
        type=int,
        default=2 * max(torch.cuda.device_count(), 1),
        help="cells trained at the same time; alone, none keeps a large GPU busy",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, default=Path("table1_saes"), help="where SAEs go")
    parser.add_argument("--name", default="table1", help="of the result file")
    parser.add_argument("--print", action="store_true", help="print the table and stop")
    parser.add_argument("--cell", nargs=3, metavar=("DATA", "VARIANT", "SEED"))
    args = parser.parse_args()
    if args.cell:
        data, variant, seed = args.cell
        folder = args.work / args.recipe / data / variant / f"seed_{seed}"
        train_cell(data, variant, int(seed), args, folder)
        return
    rows = kept_rows(args.name)
    # rows from before there was a choice are ours
    have = {
        (row["data"], row["variant"]) for row in rows if row.get("recipe", "ours") == args.recipe
    }
    wanted = [] if args.print else [(d, v) for d in args.data for v in args.variants]
    for row in make_rows([row for row in wanted if row not in have], args):
        rows.append(row)
        rows.sort(
            key=lambda r: (
                list(PAPER).index(r["data"]),
                VARIANTS.index(r["variant"]),
                list(RECIPES).index(r.get("recipe", "ours")),
            )
        )
        keep_result(args.name, {"setting": {**SETTING, "steps": args.steps}, "rows": rows})
    print("\n".join(table_lines(rows)))
    hours = sum(sum(row["training_seconds"]) for row in rows) / 3600
    print(f"\n{hours:.2f} hours of training, summed over cells that ran at the same time")


if __name__ == "__main__":
    main()
