"""Options of pytest. They stand at the root, because pytest looks nowhere else for them before it
knows which of its arguments are folders with tests."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --demo FOLDER` for the tests of a demo."""
    parser.addoption("--demo", type=Path, help="folder of a finished `isae demo`, not to run again")
