"""Malformed configs and flags of `isae train` get one sentence."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import yaml

from tests.cli.malformed.damage import bytes_of
from tests.conftest import D_IN, D_SAE, K

SAE = {"architecture": "isae_me", "d_in": D_IN, "d_sae": D_SAE, "k": K}
YAML: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "c.yaml: needs a mapping `sae:`"),
    "a scalar": ("isae", "c.yaml: needs a mapping `sae:`"),
    "a list": ("- sae", "c.yaml: needs a mapping `sae:`"),
    "tabs": ("sae:\n\tk: 3", "c.yaml is not a YAML file"),
    "open bracket": ("sae: {k: 3", "c.yaml is not a YAML file"),
    "open list": ("sae: [", "c.yaml is not a YAML file"),
    "several documents": ("a: 1\n---\nb: 2", "c.yaml is not a YAML file"),
    "python tag": ("sae: !!python/object/apply:os.getcwd []", "c.yaml is not a YAML file"),
    "unknown tag": ("sae: !mine 3", "c.yaml is not a YAML file"),
    "unknown anchor": ("sae: *there", "c.yaml is not a YAML file"),
    "not UTF-8": (b"sae: \xff\xfe", "c.yaml is not a YAML file"),
    "NUL": (b"sae: \0", "c.yaml is not a YAML file"),
    "sae a list": (yaml.safe_dump({"sae": [SAE]}), "c.yaml: needs a mapping `sae:`"),
    "sae null": (yaml.safe_dump({"sae": None}), "c.yaml: needs a mapping `sae:`"),
    "no architecture": (yaml.safe_dump({"sae": {"k": 3}}), "with an `architecture`"),
    "architecture unknown": (
        yaml.safe_dump({"sae": {"architecture": "isae-me"}}),
        "unknown architecture 'isae-me'",
    ),
    "architecture a list": (
        yaml.safe_dump({"sae": {"architecture": ["isae"]}}),
        "unknown architecture ['isae']",
    ),
    "field mistyped": (yaml.safe_dump({"sae": SAE, "hook_nam": 1}), "did you mean hook_name?"),
    "sae field mistyped": (yaml.safe_dump({"sae": {**SAE, "d_sea": 1}}), "did you mean sae.d_sae?"),
    "field a number": (yaml.safe_dump({"sae": SAE, 7: 1}), "unknown field 7"),
    "logger a text": (yaml.safe_dump({"sae": SAE, "logger": "off"}), "`logger:` must be a mapping"),
    "logger unknown": (yaml.safe_dump({"sae": SAE, "logger": {"x": 1}}), "unknown field logger.x"),
    "k 0": (yaml.safe_dump({"sae": {**SAE, "k": 0}}), "k must be an integer >= 1, got 0"),
    "k text": (yaml.safe_dump({"sae": {**SAE, "k": "three"}}), "c.yaml"),
    "k two numbers": (yaml.safe_dump({"sae": {**SAE, "k": [3, 4]}}), "c.yaml"),
    "k a mapping": (yaml.safe_dump({"sae": {**SAE, "k": {"a": 1}}}), "c.yaml"),
    "lists of lists": (yaml.safe_dump({"sae": SAE, "lr": [[1]]}), "a list of lists"),
    "lr text": (yaml.safe_dump({"sae": SAE, "lr": "fast"}), "c.yaml"),
    "d_in negative": (yaml.safe_dump({"sae": {**SAE, "d_in": -4}}), "d_in and d_sae must be >= 1"),
    "d_in 0": (yaml.safe_dump({"sae": {**SAE, "d_in": 0}}), "d_in and d_sae must be >= 1"),
    "streaming a number": (yaml.safe_dump({"sae": SAE, "streaming": 7}), "c.yaml"),
    "step matrix unknown": (
        yaml.safe_dump({"sae": {**SAE, "step_matrix": "diagonal"}}),
        "step_matrix: invalid choice: 'diagonal'",
    ),
}


@pytest.mark.parametrize("case", YAML)
def test_yaml(case, place, said):
    data, words = YAML[case]
    bytes_of(place, "c.yaml", data if isinstance(data, bytes) else data.encode())
    assert words in said("train", "--config", "c.yaml")


UNREADABLE = (
    "y.gguf cannot be converted" if find_spec("gguf") else "reading y.gguf needs the package"
)
FLAGS: dict[tuple[object, ...], str] = {
    ("--config", "none.yaml"): "no config file none.yaml",
    ("--config", "a"): "no config file a",
    ("--architecture", "isea"): "isea",
    ("--architecture", "isae", "--arip_wight", 1): "arip_wight",
    ("--architecture", "isae", "--k", "three"): "the command line",
    ("--architecture", "isae", "--k"): "the command line",
    ("--architecture", "isae", "--activation", "relu"): "relu",
    ("--architecture", "isae", "--arip_weight", -1): "arip_weight must be a number >= 0",
    ("--architecture", "isae", "--average_from", 1, "--average_until", 2): "which has 3 steps",
    ("--architecture", "isae", "--model_name", "gguf:none.gguf"): "no GGUF file none.gguf",
    ("--architecture", "isae", "--model_name", "gguf:no_package"): "'no_package' is not installed",
    ("--architecture", "isae", "--model_name", "gguf:x.gguf"): "x.gguf is not a GGUF file (0 bytes",
    ("--architecture", "isae", "--model_name", "gguf:y.gguf"): UNREADABLE,
    ("--architecture", "isae", "--dataset_path", "package:novels"): "got 'novels'",
}


@pytest.mark.parametrize("flags", FLAGS, ids=lambda some: " ".join(map(str, some)))
def test_training_flags(flags, tiny_model, place, said):
    model, text = tiny_model
    bytes_of(place, "x.gguf", b"")
    bytes_of(place, "y.gguf", b"GGUF" + b"\1" * 99)
    needed = () if flags[0] == "--config" else (
        "--dataset_path", text, "--streaming", "false", "--model_name", model, "--d_in", D_IN,
        "--d_sae", D_SAE, "--hook_name", "model.layers.0", "--training_tokens", 9000,
        "--n_batches_in_buffer", 64, "--model_class_name", "AutoModelForCausalLM",
    )  # fmt: skip
    k = () if flags[0] == "--config" or "--k" in flags or "isea" in flags else ("--k", K)
    assert FLAGS[flags] in said("train", *needed, *flags, *k)
