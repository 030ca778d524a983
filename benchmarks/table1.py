"""Table 1 of paper 1: four variants on two kinds of synthetic data, three seeds each.

    python benchmarks/table1.py                       # everything, about 40 minutes of one H100
    python benchmarks/table1.py --data iid --variants AbsTopK iSAE-ME
    python benchmarks/table1.py --print               # the table from what was measured so far

A cell is one training run, a process of its own; a row is compared once its cells are there. What
`results/table1.json` holds, or as a cell the work folder, is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from provenance import RESULTS, provenance, write_result
from sae_lens import SAETrainer
from sae_lens.config import SAETrainerConfig
from sae_lens.synthetic import SyntheticModel
from sae_lens.synthetic.training import SyntheticActivationIterator
from tqdm.auto import tqdm

from sae_lens_isae.architectures.schedule import SyntheticSchedule
from sae_lens_isae.architectures.variants import paper_variants
from sae_lens_isae.identifiability import match_dictionaries, pairwise_identifiability
from sae_lens_isae.identifiability.loading import load_sae
from sae_lens_isae.identifiability.table import table_row
from sae_lens_isae.synthetic import GENERATORS
from sae_lens_isae.training import seeded_sae

D_IN, D_SAE, K, BATCH = 768, 4096, 40, 2048
SEEDS = (0, 1, 2)
VARIANTS = ("TopK", "AbsTopK", "iSAE", "iSAE-ME")
COLUMNS = ("mse", "r_arip", "sae_iou", "sae_l2", "oracle_iou", "oracle_l2", "dcs")
PAPER = {
    "iid": {
        "TopK": (0.447, 0.098, 0.113, 0.882, 0.172, 0.786, 0.606),
        "AbsTopK": (0.318, 0.106, 0.487, 0.557, 0.914, 0.176, 0.935),
        "iSAE": (0.318, 0.101, 0.487, 0.558, 0.913, 0.177, 0.933),
        "iSAE-ME": (0.001, 0.102, 0.997, 0.020, 0.997, 0.012, 0.999),
    },
    "mixture": {
        "TopK": (0.357, 0.120, 0.149, 0.840, 0.250, 0.758, 0.633),
        "AbsTopK": (0.303, 0.229, 0.393, 0.637, 0.675, 0.427, 0.804),
        "iSAE": (0.319, 0.095, 0.497, 0.526, 0.706, 0.389, 0.843),
        "iSAE-ME": (0.040, 0.230, 0.873, 0.219, 0.877, 0.215, 0.932),
    },
}
_CHUNK = 8
"""Batches that are drawn at once, which costs the host a fraction of drawing them singly."""
_HELD_OUT_SEED = 2**31 - 1
_N_HELD_OUT = 8192


def synthetic_model(data: str, device: str) -> SyntheticModel:
    """The concepts of one half of the table; the same for every cell."""
    return GENERATORS[data](num_features=D_SAE, hidden_dim=D_IN, k=K, device=device)


def train_cell(data: str, variant: str, seed: int, n_steps: int, device: str, out: Path) -> None:
    """One training run through SAELens' trainer, in TF32."""
    torch.set_float32_matmul_precision("high")
    schedule = SyntheticSchedule(n_steps)
    model = synthetic_model(data, device)
    cfg = paper_variants(
        schedule.encoder_warm_up_steps(),
        d_in=D_IN,
        d_sae=D_SAE,
        k=K,
        device=device,
        **schedule.sae_settings(),
    )[variant]
    # the seed decides initial weights and, from here on, the stream of samples
    sae = seeded_sae(cfg, seed)
    chunks = SyntheticActivationIterator(
        model.feature_dict, model.activation_generator, _CHUNK * BATCH
    )
    trainer_cfg = SAETrainerConfig(
        total_training_samples=n_steps * BATCH,
        train_batch_size_samples=BATCH,
        device=device,
        **schedule.trainer_settings(),
    )
    batches = chain.from_iterable(chunk.split(BATCH) for chunk in chunks)
    start = time.perf_counter()
    SAETrainer(trainer_cfg, sae, batches).fit()
    seconds = time.perf_counter() - start
    sae.save_inference_model(out)
    (out / "seconds.json").write_text(json.dumps(seconds))


def compare_row(data: str, variant: str, folders: Sequence[Path], device: str) -> dict[str, Any]:
    """All pairs of seeds on samples that none was trained on, and each seed against the truth."""
    model = synthetic_model(data, device)
    torch.manual_seed(_HELD_OUT_SEED)
    with torch.no_grad():
        held_out = model.sample(_N_HELD_OUT)
    saes = {folder.name: load_sae(str(folder), device=device) for folder in folders}
    report = pairwise_identifiability(saes, held_out)
    per_seed = {
        "mse": [sae.mse for sae in report.saes],
        "r_arip": [sae.r_arip for sae in report.saes],
        "n_dead": [sae.n_dead for sae in report.saes],
    }
    per_pair = {
        "dcs": [pair.dcs for pair in report.pairs],
        "sae_iou": [pair.sae.iou.value for pair in report.pairs],
        "sae_l2": [pair.sae.l2.value for pair in report.pairs],
        "oracle_iou": [pair.oracle.iou.value for pair in report.pairs if pair.oracle],
        "oracle_l2": [pair.oracle.l2.value for pair in report.pairs if pair.oracle],
    }
    concepts = model.feature_dict.feature_vectors.detach()
    truth = [match_dictionaries(sae.W_dec, concepts) for sae in saes.values()]
    return {
        "data": data,
        **table_row(variant, report).to_dict(),
        "spread": {k: stdev(v) for k, v in {**per_seed, **per_pair}.items() if k != "n_dead"},
        "per_seed": {
            **per_seed,
            "dcs_to_truth": [match.dcs for match in truth],
            "n_lost_concepts": [int((match.cosine.abs() < 0.9).sum()) for match in truth],
            "seconds": [json.loads((f / "seconds.json").read_text()) for f in folders],
        },
        "per_pair": per_pair,
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Ours with the spread over seeds or pairs, and below it the paper's."""
    print("| data | variant | | MSE | R | IoU | l2 | oracle IoU | oracle l2 | DCS |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        ours = " | ".join(f"{row[c]:.4f} ± {row['spread'][c]:.4f}" for c in COLUMNS)
        paper = " | ".join(f"{value:.3f}" for value in PAPER[row["data"]][row["variant"]])
        print(f"| {row['data']} | {row['variant']} | ours | {ours} |")
        print(f"| | | paper | {paper} |")


def main() -> None:
    """Train what is missing, compare, keep every row as soon as it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", choices=list(PAPER), default=list(PAPER))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--jobs", type=int, default=3, help="cells trained at the same time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, default=Path("table1_saes"), help="where SAEs go")
    parser.add_argument("--name", default="table1", help="of the result file")
    parser.add_argument("--print", action="store_true", help="print the table and stop")
    parser.add_argument("--cell", nargs=3, metavar=("DATA", "VARIANT", "SEED"))
    args = parser.parse_args()
    if args.cell:
        data, variant, seed = args.cell
        folder = args.work / data / variant / f"seed_{seed}"
        train_cell(data, variant, int(seed), args.steps, args.device, folder)
        return
    path = RESULTS / f"{args.name}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    if args.print:
        print_table(rows)
        return
    have = {(row["data"], row["variant"]) for row in rows}
    for data, variant in [(d, v) for d in args.data for v in args.variants]:
        if (data, variant) in have:
            continue
        folders = [args.work / data / variant / f"seed_{seed}" for seed in SEEDS]
        start = time.perf_counter()
        train_missing(data, variant, folders, args)
        row = compare_row(data, variant, folders, args.device)
        rows.append({**row, "wall_seconds": time.perf_counter() - start, "made": provenance()})
        order = list(PAPER)
        rows.sort(key=lambda r: (order.index(r["data"]), VARIANTS.index(r["variant"])))
        setting = {"d_in": D_IN, "d_sae": D_SAE, "k": K, "batch": BATCH, "steps": args.steps}
        write_result(args.name, {"setting": setting, "rows": rows})
    print_table(rows)
    seconds = mean(sum(row["per_seed"]["seconds"]) for row in rows) * len(rows)
    wall = sum(row["wall_seconds"] for row in rows)
    print(f"training {seconds / 60:.1f} min added up over cells, {wall / 60:.1f} min of wall time")


def train_missing(
    data: str, variant: str, folders: Sequence[Path], args: argparse.Namespace
) -> None:
    """The cells of a row, several at a time: alone, none keeps a large GPU busy."""

    def run(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        seed = folder.name.removeprefix("seed_")
        command = [sys.executable, *sys.argv, "--cell", data, variant, seed]
        with (folder / "log").open("w") as log:
            done = subprocess.run(command, stdout=log, stderr=log, check=False)
        if done.returncode:
            raise RuntimeError(f"training failed; {folder / 'log'} says why")

    missing = [folder for folder in folders if not (folder / "seconds.json").exists()]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(run, folder) for folder in missing]
        for done in tqdm(as_completed(runs), total=len(runs), desc=f"{data} {variant}"):
            done.result()


if __name__ == "__main__":
    main()
