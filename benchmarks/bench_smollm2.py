"""SAEBench and CE-bench on TopK, AbsTopK, iSAE and iSAE-ME trained on SmolLM2, after block 9.

    python benchmarks/bench_smollm2.py        # needs `make bench`; minutes on a GPU, hours on a CPU

`configs/smollm2_<variant>.yaml` with four times the latents and ten times the tokens, then `isae
bench` on the data that it uses without a hub. All variants see the same tokens. What lies in the
work folder is not made again, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from provenance import write_result

from sae_lens_isae import bench
from sae_lens_isae.evals.tables import detail_tables, summary_table
from sae_lens_isae.files import write_json
from sae_lens_isae.training.config import load_runner_config
from sae_lens_isae.training.runs import train

VARIANTS = ("topk", "abstopk", "isae", "isae_me")
EVALS = ("core", "sparse_probing", "scr", "tpp", "sae_probes", "ce_bench")
FLAGS = ["--d_sae", "4096", "--training_tokens", "2000000"]
FLAGS += ["--train_batch_size_tokens", "1024", "--lr_decay_steps", "390"]
ROOT = Path(__file__).parent.parent
STORIES = ROOT / "tests" / "cebench" / "stories.json"


def main() -> None:
    """Train what is missing, evaluate what is not finished."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("output/bench_smollm2"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--stories", default=str(STORIES), help="pairs for CE-bench")
    parser.add_argument("--name", default="bench_smollm2", help="of the result")
    parser.add_argument("--flags", default="", help="more flags for training")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds: dict[str, float] = {}
    for variant in VARIANTS:
        folder, mark = args.work / variant, args.work / variant / "seconds.json"
        if not mark.exists():
            start = time.perf_counter()
            config = ROOT / "configs" / f"smollm2_{variant}.yaml"
            flags = [*FLAGS, "--device", device, "--output_path", str(folder), *args.flags.split()]
            train(load_runner_config(config, flags), n_seeds=args.seeds, n_eval_batches=0)
            write_json(mark, time.perf_counter() - start)
        seconds[variant] = float(mark.read_text(encoding="utf-8"))
    saes = [
        str(p.parent) for v in VARIANTS for p in sorted((args.work / v).glob("seed_*/cfg.json"))
    ]
    start = time.perf_counter()
    out = args.work / "bench"
    settings = {"data": "offline", "stories": args.stories, "autocast": True, "device": device}
    # before and after: signed codes in both forms where it matters
    both = bench(saes, ("core", "tpp"), out, codes="both", resume=True, **settings).results
    report = bench(saes, EVALS, out, resume=True, **settings)
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
            "seconds_training": seconds,
            "seconds_bench": time.perf_counter() - start,
        },
    )


if __name__ == "__main__":
    main()
