"""Matching dictionaries at scale: time, peak memory and certificate, beside scipy's dense solver.

Every measurement is a process of its own, so that its peak memory is its own. `shared` is the share
of atoms that both dictionaries have (with noise); the rest is unrelated. Nothing shared is the
hardest case for the solver.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from provenance import write_result
from scipy.optimize import linear_sum_assignment

from sae_lens_isae.identifiability import match_dictionaries


def dictionaries(k: int, d_in: int, shared: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two dictionaries with some atoms in common, up to order, sign and noise."""
    generator = torch.Generator().manual_seed(0)
    a = torch.nn.functional.normalize(torch.randn(k, d_in, generator=generator), dim=-1)
    noise = torch.nn.functional.normalize(torch.randn(k, d_in, generator=generator), dim=-1)
    b = a + 0.3 * noise
    b[int(shared * k) :] = noise[int(shared * k) :]
    sign = torch.randint(0, 2, (k, 1), generator=generator) * 2 - 1
    return a, (sign * b)[torch.randperm(k, generator=generator)]


def measure(solver: str, k: int, d_in: int, shared: float, device: str) -> dict[str, float]:
    """One matching, in this process."""
    a, b = (d.to(device) for d in dictionaries(k, d_in, shared))
    start = time.perf_counter()
    if solver == "scipy":
        b = torch.nn.functional.normalize(b, dim=-1)
        cosine = (a @ b.T).abs().cpu().numpy()
        rows, columns = linear_sum_assignment(cosine, maximize=True)
        dcs, gap = float(cosine[rows, columns].mean()), 0.0
    else:
        match = match_dictionaries(a, b)
        dcs, gap = match.dcs, match.gap
    return {
        "seconds": time.perf_counter() - start,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "dcs": dcs,
        "gap": gap,
    }


def main() -> None:
    """All sizes, one process each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8192, 16384, 65536])
    parser.add_argument("--shared", type=float, nargs="+", default=[0.8, 0.3, 0.0])
    parser.add_argument("--d_in", type=int, default=768)
    parser.add_argument("--scipy-up-to", type=int, default=16384)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", nargs=3, metavar=("SOLVER", "K", "SHARED"))
    args = parser.parse_args()
    if args.one:
        solver, k, shared = args.one
        print(json.dumps(measure(solver, int(k), args.d_in, float(shared), args.device)))
        return
    rows: list[dict[str, object]] = []
    for k in args.sizes:
        for shared in args.shared:
            for solver in ("ours", "scipy") if k <= args.scipy_up_to else ("ours",):
                command = [sys.executable, *sys.argv, "--one", solver, str(k), str(shared)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                rows.append({"latents": k, "shared": shared, "solver": solver, **found})
                print(json.dumps(rows[-1]), flush=True)
    suffix = "" if args.d_in == 768 else f"_{args.d_in}"
    write_result(f"matching_{args.device}{suffix}", {"d_in": args.d_in, "rows": rows})


if __name__ == "__main__":
    main()
