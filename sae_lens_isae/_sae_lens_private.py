"""The only place that uses names which SAELens does not promise to keep.

Seen in sae-lens 6.54.0 to 6.54.12; `tests/test_sae_lens_private.py` fails when one moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig
from sae_lens.llm_sae_training_runner import (
    _parse_cfg_args,  # pyright: ignore[reportPrivateUsage]
)


def parse_runner_config(args: Sequence[str]) -> LanguageModelSAERunnerConfig[Any]:
    """Parse the flags of `python -m sae_lens.llm_sae_training_runner` without starting the run.

    SAELens' command line offers no other way to seed, to train several seeds, or to hand over a
    model. Raises `argparse.ArgumentError` or `SystemExit` on bad flags, like any argparse parser.
    """
    return _parse_cfg_args(list(args))
