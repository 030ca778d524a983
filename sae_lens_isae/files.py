"""Files that are written whole or not at all, and names for what they hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that an interruption leaves the old one or none, never half of one."""
    scratch = path.with_name(f".{path.name}.partial")
    try:
        write(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def json_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table for JSON, where pandas writes missing values as null."""
    return json.loads(str(table.to_json(orient="records")))


def write_json(path: Path, data: Any, indent: int | None = 2) -> None:
    """Write JSON, whole or not at all; NaN and Inf are refused."""
    text = json.dumps(data, indent=indent, allow_nan=False) + "\n"
    write_whole(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def fingerprint(tensors: Sequence[torch.Tensor], settings: Any) -> str:
    """A name for a computation: equal weights, activations and settings have an equal one."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for tensor in tensors:
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(
            tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]
