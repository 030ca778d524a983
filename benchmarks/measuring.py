"""What `isae pairwise` and `isae audit` say of the demo's checkpoints (run `make demo` first)."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from provenance import write_result
from sae_lens_isae.identifiability.table import table_row
from sae_lens_isae.measuring import Inputs, run_audit, run_pairwise

from sae_lens_isae.demo import TABLE_FILENAME
from sae_lens_isae.identifiability.audit import audits_to_dict
from sae_lens_isae.training.runs import ACTIVATIONS_FILENAME


def main() -> None:
    """Measure every variant and compare with the demo's own table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo/synthetic"))
    demo: Path = parser.parse_args().demo
    variants: list[dict[str, Any]] = []
    for row in json.loads((demo / TABLE_FILENAME).read_text())["rows"]:
        variant = row["variant"]
        inputs = Inputs(
            [str(demo / variant / f"seed_{seed}") for seed in range(row["n_seeds"])],
            str(demo / ACTIVATIONS_FILENAME),
        )
        with tempfile.TemporaryDirectory() as scratch:
            found = table_row(variant, run_pairwise(inputs, Path(scratch))).to_dict()
            audited = audits_to_dict(run_audit(inputs, Path(scratch)))
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
