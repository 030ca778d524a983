"""OMP at GemmaScope size against scikit-learn; on a GPU against orthogonal-matching-pursuit-gpu.

On a CPU every measurement is a process of its own, so that its peak memory is its own (on a GPU
torch says what a call took). The contestants take turns, and the ratio of each turn is reported.
scikit-learn works through its targets one by one, so its time for all of them is that of a few
times their number.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from unittest.mock import MagicMock

import torch
from provenance import write_result

from sae_lens_isae.solvers import gd_sparse, gram_matrix, iht, omp

Solver = Callable[[torch.Tensor, torch.Tensor, int], object]


def ours(x: torch.Tensor, dictionary: torch.Tensor, k: int) -> object:
    """OMP with its Gram matrix."""
    return omp(x, dictionary, k)


def ours_iht(x: torch.Tensor, dictionary: torch.Tensor, k: int) -> object:
    """IHT, 300 iterations, with its Gram matrix."""
    return iht(x, dictionary, k)


def ours_gd(x: torch.Tensor, dictionary: torch.Tensor, k: int) -> object:
    """GD-sparse, 500 iterations."""
    return gd_sparse(x, dictionary, k)


def gram_alone(x: torch.Tensor, dictionary: torch.Tensor, k: int) -> object:
    """The Gram matrix that OMP and IHT build."""
    del x, k
    return gram_matrix(dictionary)


def sklearn_mp(x: torch.Tensor, dictionary: torch.Tensor, k: int) -> object:
    """`sklearn.linear_model.orthogonal_mp`."""
    from sklearn.linear_model import orthogonal_mp  # noqa: PLC0415

    return orthogonal_mp(dictionary.T.numpy(), x.T.numpy(), n_nonzero_coefs=k)


def sklearn_gram(x: torch.Tensor, dictionary: torch.Tensor, k: int) -> object:
    """`sklearn.linear_model.orthogonal_mp_gram`, the Gram matrix included."""
    from sklearn.linear_model import orthogonal_mp_gram  # noqa: PLC0415

    atoms = dictionary.numpy()
    return orthogonal_mp_gram(atoms @ atoms.T, atoms @ x.T.numpy(), n_nonzero_coefs=k)


def omp_gpu(x: torch.Tensor, dictionary: torch.Tensor, k: int) -> object:
    """`orthogonal_matching_pursuit_gpu.run_omp`, which builds its own Gram matrix."""
    # its CPU kernels are a compiled module that the GPU path never calls
    sys.modules.setdefault("orthogonal_matching_pursuit_gpu.blas_kernels", MagicMock())
    from orthogonal_matching_pursuit_gpu import run_omp  # noqa: PLC0415

    return run_omp(dictionary.T.contiguous(), x, k, normalize=False, fit_intercept=False)


SOLVERS: dict[str, Solver] = {
    f.__name__: f for f in (ours, ours_iht, ours_gd, gram_alone, sklearn_mp, sklearn_gram, omp_gpu)
}


def measure(name: str, n: int, args: argparse.Namespace) -> dict[str, float]:
    """Seconds and peak memory of one solver on `n` samples, in this process."""
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.randn(args.d_sae, args.d_in, generator=generator)
    dictionary = torch.nn.functional.normalize(dictionary, dim=-1).to(args.device)
    x = torch.randn(n, args.d_in, generator=generator).to(args.device)
    seconds: list[float] = []
    for _ in range(args.repeats):
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        SOLVERS[name](x, dictionary, args.k)
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = (
        torch.cuda.max_memory_allocated()
        if args.device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    # the first pass on a GPU loads kernels
    return {
        "seconds": median(seconds[1:] or seconds),
        "peak_gb": peak / 1e9,
    }


def main() -> None:
    """Take turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--d_in", type=int, default=2304)
    parser.add_argument("--d_sae", type=int, default=16384)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1, help="passes within one process")
    parser.add_argument("--sklearn-samples", type=int, default=60)
    parser.add_argument("--sklearn-gram-samples", type=int, default=12)
    parser.add_argument("--gd-samples", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", help="measure this solver here and print JSON")
    parser.add_argument("--n", type=int)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.n, args)))
        return
    if args.device == "cuda":
        peers = {"omp_gpu": args.samples}
        alone = {"gram_alone": args.samples, "ours_iht": args.samples, "ours_gd": args.samples}
    else:
        peers = {"sklearn_mp": args.sklearn_samples, "sklearn_gram": args.sklearn_gram_samples}
        alone = {"gram_alone": args.samples, "ours_iht": args.samples, "ours_gd": args.gd_samples}

    def take_turn(name: str, n: int) -> dict[str, float]:
        return measure(name, n, args) if args.device == "cuda" else in_process(name, n)

    rounds: list[dict[str, dict[str, float]]] = []
    for i in range(args.rounds):
        turn = {"ours": args.samples, **peers, **(alone if i == 0 else {})}
        rounds.append({name: take_turn(name, n) for name, n in turn.items()})
        print(json.dumps(rounds[-1]), flush=True)
    ratios = {
        peer: [r[peer]["seconds"] * args.samples / n / r["ours"]["seconds"] for r in rounds]
        for peer, n in peers.items()
    }
    write_result(
        f"solvers_{args.device}",
        {
            "problem": {f: getattr(args, f) for f in ("samples", "d_in", "d_sae", "k")},
            "samples_measured": {"ours": args.samples, **peers, **alone},
            "rounds": rounds,
            "times_faster_than": {
                peer: {"median": median(r), "min": min(r), "max": max(r)}
                for peer, r in ratios.items()
            },
        },
    )


def in_process(name: str, n: int) -> dict[str, float]:
    """The same command line in a fresh process, for one solver."""
    command = [sys.executable, *sys.argv, "--one", name, "--n", str(n)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
