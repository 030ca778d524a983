"""What `isae pairwise` and `isae audit` say of the demo's checkpoints (run `make demo` first)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from provenance import write_result

from sae_lens_isae import audit, pairwise_identifiability
from sae_lens_isae.demo_report import TABLE_FILENAME
from sae_lens_isae.training.results import ACTIVATIONS_FILENAME


def main() -> None:
    """Measure every variant and compare with the demo's own table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo/synthetic"))
    demo: Path = parser.parse_args().demo
    variants: list[dict[str, Any]] = []
    for row in json.loads((demo / TABLE_FILENAME).read_text())["rows"]:
        variant = row["variant"]
        saes = [demo / variant / f"seed_{seed}" for seed in range(row["n_seeds"])]
        activations = demo / ACTIVATIONS_FILENAME
        found = pairwise_identifiability(saes, activations).table1_row(variant).to_dict()
        audited = audit(saes, activations).to_dict()
        numbers = [k for k, v in row.items() if isinstance(v, float)]
        variants.append(
            {
                "variant": variant,
                "largest_difference_to_the_demo": max(abs(found[k] - row[k]) for k in numbers),
                "delta_on_pairs": [
                    {k: v for k, v in sae["pairs"].items() if k != "deltas"}
                    for sae in audited["saes"]
                ],
                "assumptions": [sae["assumptions"] for sae in audited["saes"]],
                "theorem": audited["theorem"],
                "conclusion": audited["conclusion"],
            }
        )
    write_result("measuring", {"variants": variants})


if __name__ == "__main__":
    main()
