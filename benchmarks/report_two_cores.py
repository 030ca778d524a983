"""How long `isae report` takes on a laptop, without a hub: two seeds, every part.

    python benchmarks/report_two_cores.py      # needs `make bench`

Runs the command in a process of its own, with nothing kept from before.
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

from sae_lens_isae.full_report import STATE_FILENAME

CONFIG = "smollm2_isae_me"


def main() -> None:
    """Run the command, keep its time, part by part, and its answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("output/report"))
    out = parser.parse_args().work
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "sae_lens_isae", "report", CONFIG, "--seeds", "2"]
    start = time.perf_counter()
    subprocess.run(
        [*command, "--out", str(out)], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    seconds = time.perf_counter() - start
    parts = json.loads((out / STATE_FILENAME).read_text(encoding="utf-8"))["parts"]
    kept = {
        name: {k: part[k] for k in ("seconds", "answer") if k in part}
        for name, part in parts.items()
    }
    write_result("report_two_cores", {"seconds": round(seconds), "parts": kept})


if __name__ == "__main__":
    main()
