"""Finished parts of a study, so that an interrupted one goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from sae_lens_isae.errors import InputError, explained
from sae_lens_isae.files import json_records, write_json, write_whole
from sae_lens_isae.solvers import SparseCodes

_DELETE = "delete it, and it is computed again"


class StudyCache:
    """The finished parts of one study by name, in a folder; without one nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.seconds: dict[str, float] = {}
        """What computing each part took; parts that were there are left out."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def has_parts(self) -> bool:
        """Whether any part is finished."""
        return self._folder is not None and any(self._folder.iterdir())

    def codes(
        self, name: str, device: torch.device, compute: Callable[[], list[SparseCodes]]
    ) -> list[SparseCodes]:
        """Codes, one for every start."""
        path = self._path(f"{name}.safetensors")
        if path is not None and path.exists():
            with explained(path, "is damaged", _DELETE):
                kept = load_file(path, str(device))
                d_sae = int(kept["d_sae"])
                return [
                    SparseCodes(kept[f"indices_{i}"], kept[f"values_{i}"], d_sae)
                    for i in range(len(kept) // 2)
                ]
        found = self._timed(name, compute)
        if path is not None:
            tensors = {"d_sae": torch.tensor(found[0].d_sae)}
            for i, codes in enumerate(found):
                tensors[f"indices_{i}"] = codes.indices.contiguous()
                tensors[f"values_{i}"] = codes.values.contiguous()
            write_whole(path, lambda scratch: save_file(tensors, scratch))
        return found

    def table(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table of numbers."""
        path = self._path(f"{name}.json")
        if path is not None and path.exists():
            with explained(path, "is damaged", _DELETE):
                kept = pd.DataFrame(json.loads(path.read_text(encoding="utf-8")))
                if "method" not in kept or not len(kept):
                    raise InputError(f"{path} is damaged: it holds no rows; {_DELETE}")
                return kept
        found = self._timed(name, compute)
        if path is not None:
            write_json(path, json_records(found))
        return found

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / name

    def _timed(self, name: str, compute: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        found = compute()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = time.perf_counter() - start
        return found
