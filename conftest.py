"""What pytest must know before it looks for tests, or torch must when it is imported."""

import os
from pathlib import Path

import pytest

# models, data sets and statistics come from the installed packages alone
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# small sums gain nothing from threads, and those of two workers wait for each other
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --demo FOLDER` for the tests of a demo."""
    parser.addoption("--demo", type=Path, help="folder of a finished `isae demo`, not to run again")
