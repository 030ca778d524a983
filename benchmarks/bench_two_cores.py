"""How long the README's `isae bench` takes, without a hub: two checkpoints, four evals.

    python benchmarks/bench_two_cores.py      # needs `make bench`

Trains `configs/smollm2_isae_me.yaml` with two seeds if they are not there, and runs the command in
a process of its own, with nothing kept from before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from provenance import write_result

from sae_lens_isae.training.config import load_runner_config
from sae_lens_isae.training.runs import train

ROOT = Path(__file__).parent.parent
SEEDS = ("seed_42", "seed_43")
OPTIONS = ["--evals", "core", "sparse_probing", "scr", "tpp", "--autocast"]


def main() -> None:
    """Train what is missing, run the command, keep its time and its numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("output/smollm2_isae_me"))
    work = parser.parse_args().work
    if not all((work / seed / "cfg.json").exists() for seed in SEEDS):
        config = ROOT / "configs" / "smollm2_isae_me.yaml"
        flags = ["--output_path", str(work)]
        train(load_runner_config(config, flags), n_seeds=len(SEEDS), n_eval_batches=0)
    out = work / "bench"
    shutil.rmtree(out, ignore_errors=True)
    saes = [str(work / seed) for seed in SEEDS]
    command = [sys.executable, "-m", "sae_lens_isae", "bench", *saes, *OPTIONS, "--out", str(out)]
    start = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    seconds = time.perf_counter() - start
    results = json.loads((out / "bench.json").read_text(encoding="utf-8"))
    write_result("bench_two_cores", {"seconds": round(seconds), "results": results})


if __name__ == "__main__":
    main()
