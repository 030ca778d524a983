"""Ways to damage checkpoints and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tests.conftest import D_IN

STORIES = {"story1": "a b", "story2": "c d", "subject_title": "s"}
GOOD_DATA = f"synthetic:iid,num_features=30,hidden_dim={D_IN},k=2"
CFG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


def config_with(place: Path, **changes: Any) -> None:
    data = json.loads((place / "a" / CFG).read_text())
    (place / "a" / CFG).write_text(json.dumps({**data, **changes}))


def weights_with(place: Path, name: str = "a", drop: str = "", **changes: Any) -> None:
    data = load_file(place / name / WEIGHTS)
    data = {k: v for k, v in data.items() if k != drop}
    save_file({**data, **{k: v.contiguous() for k, v in changes.items()}}, place / name / WEIGHTS)


def replaced(place: Path, what: str, by: bytes | str) -> None:
    (place / what).write_bytes(by if isinstance(by, bytes) else by.encode())


def made_folder(place: Path, what: str) -> None:
    (place / what).unlink()
    (place / what).mkdir()


def bytes_of(place: Path, name: str, data: bytes) -> str:
    (place / name).write_bytes(data)
    return name


def for_model(place: Path, model: Path) -> None:
    """Let `a` and `b` name a hook of a model."""
    for name in "ab":
        data = json.loads((place / name / CFG).read_text())
        data["metadata"] |= {
            "hook_name": "model.layers.0",
            "model_name": str(model),
            "model_class_name": "AutoModelForCausalLM",
            "prepend_bos": True,
            "context_size": 16,
        }
        (place / name / CFG).write_text(json.dumps(data))
