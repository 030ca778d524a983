"""Run the tests that need a CUDA device (`make test-gpu`) and keep what came of them.

python benchmarks/gpu_tests.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import torch
from provenance import write_result

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Fails where a test fails, or where there is no device."""
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device: none of these tests would run")
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junit-xml={log}"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        (suite,) = ET.parse(log).getroot().iter("testsuite")
    cases = list(suite.iter("testcase"))
    bad = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = Counter(
        str(found.get("message")) for case in cases if (found := case.find("skipped")) is not None
    )
    write_result(
        "gpu_tests",
        {
            "passed": len(cases) - len(bad) - skipped.total(),
            "failed": bad,
            "skipped": dict(skipped),
            "seconds": float(suite.get("time", "nan")),
            "by_file": dict(Counter(str(case.get("classname")) for case in cases)),
        },
    )
    sys.exit(code)


if __name__ == "__main__":
    main()
