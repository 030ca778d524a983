"""Tokens a second on one GPU and on two, in turns: `python benchmarks/two_gpus.py`; needs two.

Runs `throughput.py` alone and under `torchrun`: one SAE on shares of every batch, with steps of the
same size and with steps of twice the size, and four seeds, of which each GPU trains two. Cases that
are not asked for stay as the result file has them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, write_result

HERE = Path(__file__).parent
CASES = {
    "one SAE, steps of 2048": ("isae_me", 2048, 2048),
    "one SAE, steps of 2048 a GPU": ("isae_me", 2048, 4096),
    "four seeds": ("isae_me:4", 2048, 2048),
}
"""What is trained, and the tokens of a step on one GPU and on two."""


def rate(n_gpus: int, kind: str, batch: int, n_tokens: int, more: list[str]) -> float:
    """Tokens a second of one run."""
    name = "throughput_of_one_run"
    flags = ["--kinds", kind, "--batch", str(batch), "--tokens", str(n_tokens), "--repeats", "1"]
    start = [sys.executable] if n_gpus == 1 else ["torchrun", "--nproc-per-node", str(n_gpus)]
    subprocess.run(
        [*start, "throughput.py", *flags, "--no-parts", "--name", name, *more],
        cwd=HERE,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **({"CUDA_VISIBLE_DEVICES": "0"} if n_gpus == 1 else {})},
    )
    file = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text())
    file.unlink()
    (of_setting,) = (
        part for part in found.values() if isinstance(part, dict) and "tokens_per_second" in part
    )
    return of_setting["tokens_per_second"][kind][0]


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=3_000_000)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    args, more = parser.parse_known_args()
    if torch.cuda.device_count() < 2:
        sys.exit("this compares one GPU with two, and torch does not see two")
    file = RESULTS / "two_gpus.json"
    before = json.loads(file.read_text())["rows"] if file.is_file() else []
    rows: list[dict[str, Any]] = [row for row in before if row["case"] not in args.cases]
    for case in args.cases:
        kind, of_one, of_two = CASES[case]
        one: list[float] = []
        two: list[float] = []
        for _ in range(args.repeats):
            one.append(rate(1, kind, of_one, args.tokens, more))
            two.append(rate(2, kind, of_two, 2 * args.tokens, more))
            print(f"{case}: {one[-1]:,.0f} on one, {two[-1]:,.0f} tokens/s on two", flush=True)
        ratios = [b / a for a, b in zip(one, two, strict=True)]
        median = statistics.median(ratios)
        found = {"one": one, "two": two, "ratio": median, "ratios": sorted(ratios)}
        rows.append({"case": case, "gpu": torch.cuda.get_device_name(), **found})
        write_result("two_gpus", {"rows": rows})


if __name__ == "__main__":
    main()
