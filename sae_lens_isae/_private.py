"""The only place that uses names which SAELens and TransformerLens do not promise to keep.

Seen in sae-lens 6.54.0 to 6.54.12 with transformer-lens 3.9.0; `tests/test_private.py` fails when
one moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformer_lens.loading_from_pretrained as tl_loading
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


def allow_local_model(folder: str) -> None:
    """Let `HookedTransformer.from_pretrained` load a local folder.

    TransformerLens refuses every name that its list lacks.
    """
    names = tl_loading.OFFICIAL_MODEL_NAMES  # pyright: ignore[reportPrivateImportUsage]
    if folder not in names:
        names.append(folder)
