"""The demo's table and its wall time: `python benchmarks/demo.py [--real]`, some minutes."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from provenance import write_result

from sae_lens_isae.demo import run_demo, run_real_demo

real = "--real" in sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    report = (run_real_demo if real else run_demo)(Path(folder))
    seconds = round(time.perf_counter() - start)
write_result(
    "demo_real" if real else "demo",
    {
        "seconds": seconds,
        "settings": report.settings,
        "rows": [row.to_dict() for row in report.rows],
    },
)
