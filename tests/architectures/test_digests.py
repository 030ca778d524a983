"""Training gives the same weights to the last bit, whatever is refactored.

`digests.json` holds, for a short seeded run of every variant, a hash of the trained weights and a
few sums of them. The hash is compared where torch and the processor are those that wrote it: other
ones round differently. The sums are compared everywhere. After a change that is meant to change
results, write the file anew: `python -m tests.architectures.test_digests`, and say so in the
changelog.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.registry import get_sae_training_class

from tests.conftest import D_IN, D_SAE, VARIANTS, K, isae_config, train_sae

FILE = Path(__file__).with_name("digests.json")

REGULARIZED: dict[str, dict[str, Any]] = {
    "regularized_standard": {"l1_coefficient": 0.5},
    "regularized_topk": {"k": K},
    "regularized_abstopk": {"k": K},
    "regularized_batchtopk": {"k": float(K)},
    "regularized_matryoshka_batchtopk": {"k": float(K), "matryoshka_widths": [10, D_SAE]},
    "regularized_jumprelu": {"l0_coefficient": 0.1},
    "regularized_gated": {"l1_coefficient": 0.5},
    "regularized_matching_pursuit": {"max_iterations": K},
}
TERMS: dict[str, Any] = {
    "self_consistency_weight": 0.5,
    "self_consistency_warm_up_start": 2,
    "self_consistency_warm_up_end": 8,
    "wsae_alpha": 0.5,
}
# so many latents on so little data that some are dead at every step
RESAMPLED = {"d_sae": 4 * D_SAE, "resample_until": 25, "resample_every": 5}


def configs() -> dict[str, Any]:
    """Every run by name."""
    found: dict[str, Any] = {name: isae_config(name) for name in VARIANTS}
    found["iSAE, terms"] = isae_config("iSAE", **TERMS)
    found["iSAE-ME, terms"] = isae_config("iSAE-ME", arip_seed=3, **TERMS)
    for name in ("iSAE", "iSAE-ME", "iSAE-ME full"):
        found[f"{name}, resampled"] = isae_config(name, **RESAMPLED)
        found[f"{name}, wide"] = isae_config(name, d_sae=4 * D_SAE)
    found["iSAE-ME full, warm-up"] = isae_config("iSAE-ME full", encoder_warm_up_steps=10)
    for normalization in (
        "expected_average_only_in",
        "covariance_whitening",
        "constant_norm_rescale",
    ):
        for name in ("TopK", "iSAE-ME full"):
            cfg = isae_config(name, normalize_activations=normalization)
            found[f"{name}, {normalization}"] = cfg
    for name, settings in REGULARIZED.items():
        terms = {**TERMS, "arip_weight": 0.0 if "pursuit" in name else 0.1}
        config_class = get_sae_training_class(name)[1]
        found[name] = config_class(d_in=D_IN, d_sae=D_SAE, **settings, **terms)
    return found


def measured(cfg: Any) -> dict[str, Any]:
    """Hash and sums of the weights after a run of 30 steps on one thread."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        state = train_sae(cfg, n_steps=30, dead_feature_window=2).state_dict()
    finally:
        torch.set_num_threads(n_threads)
    weights = {name: state[name] for name in sorted(state)}
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())
    sums = {name: tensor.double().abs().sum().item() for name, tensor in weights.items()}
    return {"sha256": digest.hexdigest(), "sums": sums}


def machine() -> list[str]:
    """What rounding depends on."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(
            (line.split(": ")[1] for line in lines if line.startswith("model name")), model
        )
    return [torch.__version__, torch.backends.cpu.get_cpu_capability(), model]


STORED: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"runs": {}}


def test_every_run_is_stored_and_no_two_are_alike():
    assert list(STORED["runs"]) == list(configs())
    assert len({run["sha256"] for run in STORED["runs"].values()}) == len(STORED["runs"])


@pytest.mark.parametrize("name", configs())
def test_weights_are_those_of_before(name):
    found, stored = measured(configs()[name]), STORED["runs"][name]
    assert found["sums"] == pytest.approx(stored["sums"], rel=1e-3)
    if machine() == STORED["machine"]:
        assert found["sha256"] == stored["sha256"]


if __name__ == "__main__":
    runs = {name: measured(cfg) for name, cfg in configs().items()}
    FILE.write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")
