"""Train configs/smollm2_<variant>.yaml with two seeds, evaluate with SAELens, compare the seeds.

`python benchmarks/smollm2.py [variant ...]`, by default isae_ls; minutes a variant on two cores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from provenance import write_result
from safetensors.torch import load_file

from sae_lens_isae.identifiability import pairwise_identifiability
from sae_lens_isae.training.config import load_runner_config
from sae_lens_isae.training.runs import train

CONFIGS = Path(__file__).parent.parent / "configs"

for variant in sys.argv[1:] or ["isae_ls"]:
    with tempfile.TemporaryDirectory() as folder:
        config = CONFIGS / f"smollm2_{variant}.yaml"
        start = time.perf_counter()
        result = train(load_runner_config(config, ["--output_path", folder]), n_seeds=2)
        seconds = round(time.perf_counter() - start)
        assert result.activations_path is not None
        activations = load_file(result.activations_path)["activations"]
    saes = {trained.name: trained.sae for trained in result.saes}
    (pair,) = pairwise_identifiability(saes, activations, n_oracle_samples=0).pairs
    agreement = {"dcs": pair.dcs, "iou": pair.sae.iou.value, "l2": pair.sae.l2.value}
    write_result(
        f"smollm2_{variant}",
        {
            "seconds": seconds,
            "run_evals": {trained.name: trained.metrics for trained in result.saes},
            "pairwise": agreement,
        },
    )
