"""Tables of `results/train_step.json`; measures nothing itself.

    python benchmarks/step_report.py [--before REVISION]

prints where the time of a step goes, of the result as it is and as it was at a git revision.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from provenance import RESULTS

Row = Mapping[str, Any]
PARTS = {
    "selection of the largest": ("_select", "_row_kernel", "_bound", "_filter", "_finish"),
    "the encoder's products": ("gemm", "nvjet"),
    "products with sparse codes, and their sorts": (
        "_accumulate",
        "_combine",
        "_dot",
        "_block",
        "_values_at",
        "radix_sort",
    ),
    "Adam and clipping": ("FusedOptimizer", "multi_tensor"),
}
"""Kernels by parts of their names."""
_REST = "unit norm, copies, sums, zeros, SAELens' statistics"
_SHOWN = (("iSAE", 65_536), ("iSAE-ME tied", 65_536), ("iSAE-ME tied", 4096))
AIMS = {
    "AbsTopK": {4096: (0.55, 0.5), 16_384: (0.5, 0.45), 65_536: (0.45, 0.4)},
    "iSAE": {4096: (0.75, 0.65), 16_384: (0.6, 0.55), 65_536: (0.55, 0.5)},
    "iSAE-ME tied": {4096: (1.2, 1.1), 16_384: (1.0, 0.9), 65_536: (0.85, 0.8)},
    "iSAE-ME full": {4096: (1.5, 1.4), 16_384: (1.6, 1.5)},
}
"""GPU time over stock `topk`, in TF32 and in bfloat16."""
LEAST_SQUARES_AIM = 1.3
"""GPU time of iSAE-LS over iSAE."""
MEMORY_AIM = 3.0
"""GB of iSAE-ME, tied, at `_LARGEST` beyond weights, moments and gradients."""
_LARGEST = 65_536
_PRECISIONS = ("tf32", "bf16")


def parts(row: Row) -> dict[str, float]:
    """Milliseconds of a step by what they go into, and in all."""
    found = dict.fromkeys([*PARTS, _REST], 0.0)
    for kernel, ms in row["longest"].items():
        part = next((p for p, names in PARTS.items() if any(n in kernel for n in names)), _REST)
        found[part] += ms
    # of kernels that are too short for the list
    found[_REST] += row["gpu_ms"] - sum(row["longest"].values())
    return {**found, "all": row["gpu_ms"]}


def _by_setting(rows: Sequence[Row]) -> dict[tuple[str, int, str], Row]:
    """The rows without dead latents."""
    return {(r["name"], r["latents"], r["precision"]): r for r in rows if r["dead"] == 0}


def _gb_beyond(result: Mapping[str, Any], precision: str) -> float:
    """The most that a step of iSAE-ME, tied, takes at `_LARGEST` beyond both matrices, their
    gradients and their two moments, in GB."""
    kept = 4 * 2 * _LARGEST * result["setting"]["d_in"] * 4 / 1e9
    setting = ("iSAE-ME tied", _LARGEST, precision)
    rows = [r for r in result["rows"] if (r["name"], r["latents"], r["precision"]) == setting]
    return max(row["peak_gb"] for row in rows) - kept


def aims_table(result: Mapping[str, Any]) -> list[list[str]]:
    """Header and lines: what was aimed at, by size and precision, and whether it was met."""
    found = _by_setting(result["rows"])
    sizes = sorted({latents for _, latents, _ in found})
    lines = [["aim, TF32 and bfloat16", *(f"{latents:,}" for latents in sizes)]]

    def verdict(ratio: float, aim: float) -> str:
        return f"{aim:.2f}: {'met' if ratio <= aim else 'missed'} ({ratio:.2f})"

    for name, aims in AIMS.items():
        cells = [f"{name}, over stock `topk`"]
        for latents in sizes:
            ratios = (
                (found[name, latents, precision]["gpu_ratio"], aim)
                for precision, aim in zip(_PRECISIONS, aims.get(latents, ()), strict=False)
            )
            cells.append(", ".join(verdict(*each) for each in ratios))
        lines.append(cells)
    cells = ["iSAE-LS, over iSAE"]
    for latents in sizes:
        ratios = (
            found["iSAE-LS", latents, p]["gpu_ms"] / found["iSAE", latents, p]["gpu_ms"]
            for p in _PRECISIONS
        )
        cells.append(", ".join(verdict(ratio, LEAST_SQUARES_AIM) for ratio in ratios))
    lines.append(cells)
    beyond = (_gb_beyond(result, precision) for precision in _PRECISIONS)
    memory = ", ".join(verdict(gb, MEMORY_AIM) for gb in beyond)
    name = "iSAE-ME tied, GB beyond weights, moments and gradients"
    return [*lines, [name, *(memory if latents == _LARGEST else "" for latents in sizes)]]


def main() -> None:
    """A line for each part, the columns of `_SHOWN` before and now."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", help="git revision")
    args = parser.parse_args()
    path = RESULTS / "train_step.json"
    texts = [path.read_text(encoding="utf-8")]
    if args.before:
        name = f"{args.before}:./{path.name}"
        shown = subprocess.run(
            ["git", "show", name], cwd=RESULTS, check=True, capture_output=True, text=True
        )
        texts.insert(0, shown.stdout)
    files = [_by_setting(json.loads(text)["rows"]) for text in texts]
    columns = [parts(file[name, n, "tf32"]) for name, n in _SHOWN for file in files]
    for part in columns[0]:
        print(f"| {part} | {' | '.join(f'{column[part]:.2f}' for column in columns)} |")


if __name__ == "__main__":
    main()
