"""Where sparse forms beat dense products: each operation, each form, by size, precision, device.

    python benchmarks/sparse_ops.py

A form's time is the median over repetitions that take turns with the other forms. On a GPU calls
are captured and replayed, so that launches do not count. `sae_lens_isae/ops/backends.py` takes its
thresholds from here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from provenance import write_result

from sae_lens_isae.ops import Backend, use_backend
from sae_lens_isae.ops.selection import select_largest
from sae_lens_isae.ops.sparse import accumulate_rows, dot_rows, sum_rows


def timer(function: Callable[[], object], device: str) -> Callable[[], float]:
    """A function that runs `function` once and returns its milliseconds."""
    function()
    if device == "cpu":

        def on_cpu() -> float:
            start = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - start)

        return on_cpu
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()

    def on_gpu() -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop)

    return on_gpu


def operations(
    latents: int, k: int, d_in: int, batch: int, dtype: torch.dtype, device: str
) -> dict[str, Callable[[], object]]:
    """Every operation on random operands."""
    matrix = torch.randn(latents, d_in, device=device, dtype=dtype)
    x = torch.randn(batch, d_in, device=device, dtype=dtype)
    u = torch.randn(batch, latents, device=device, dtype=dtype)
    indices = torch.stack([torch.randperm(latents)[:k] for _ in range(batch)]).to(device)
    weights = torch.randn(batch, k, device=device)
    return {
        "sum_rows": lambda: sum_rows(matrix, indices, weights),
        "dot_rows": lambda: dot_rows(x, matrix, indices),
        "accumulate_rows": lambda: accumulate_rows(indices, weights, x, latents),
        "select_largest": lambda: select_largest(u, k, signed=True),
    }


def main() -> None:
    """All sizes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device == "cuda"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [1024, 2048, 4096, 16_384, 65_536] if on_gpu else [128, 512, 2048, 8192]
    parser.add_argument("--latents", type=int, nargs="+", default=sizes)
    parser.add_argument("--k", type=int, nargs="+", default=[40, 80])
    parser.add_argument("--d_in", type=int, default=768)
    parser.add_argument("--batch", type=int, default=2048 if on_gpu else 1024)
    parser.add_argument("--turns", type=int, default=15 if on_gpu else 5)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    rows: list[dict[str, Any]] = []
    # the plain-torch form is what a GPU without Triton gets
    forms: list[Backend] = ["dense", "torch", *(["triton"] if on_gpu else [])]
    for latents in args.latents:
        for k in args.k:
            for dtype in (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,):
                for name, function in operations(
                    latents, k, args.d_in, args.batch, dtype, device
                ).items():
                    row = {"operation": name, "latents": latents, "k": k, "dtype": str(dtype)}
                    timers: dict[Backend, Callable[[], float]] = {}
                    for form in forms:
                        with use_backend(form):
                            timers[form] = timer(function, device)
                    times: dict[Backend, list[float]] = {form: [] for form in forms}
                    for _ in range(args.turns):
                        for form in forms:
                            # a capture keeps its form; a call on the CPU chooses at each call
                            with use_backend(form):
                                times[form].append(timers[form]())
                    rows.append({**row, "ms": {form: median(t) for form, t in times.items()}})
                    print(json.dumps(rows[-1]), flush=True)
    setting = {"d_in": args.d_in, "batch": args.batch, "turns": args.turns}
    write_result(f"sparse_ops_{device}", {"setting": setting, "rows": rows})


if __name__ == "__main__":
    main()
