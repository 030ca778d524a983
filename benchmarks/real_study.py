"""Many SAEs on the same cached activations, on all GPUs at once; measures nothing itself.

Every GPU keeps the activations once and several processes share them there: one alone keeps no
large GPU busy.
"""

from __future__ import annotations

import json
import queue
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.multiprocessing as mp
from real_cells import Cell, Outside, is_finished, make_sae, seed_folder
from real_compare import compare

from sae_lens_isae.inputs.activation_cache import HELD_OUT_FILENAME, ActivationCache
from sae_lens_isae.inputs.saes import load_sae
from sae_lens_isae.training.cached import load_rows


def measure(
    cells: Sequence[Cell],
    cache: ActivationCache,
    work: Path,
    n_workers: int,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Train what the work folder lacks, and keep a row for each cell as soon as it is there.

    Args:
        n_workers: Processes on each GPU.
    """
    torch.set_float32_matmul_precision("high")
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    devices = devices or [torch.device("cpu")]
    names = [file.name for file in cache.files]
    context = mp.get_context("spawn")
    tasks, urgent, done = context.Queue(), context.Queue(), context.Queue()
    held_out = cache.activations(HELD_OUT_FILENAME).float()
    workers = []
    # workers see this process's memory: it has to stay
    shared = [load_rows(cache, names, devices[0])]
    shared += [shared[0].to(device) for device in devices[1:]]
    for rows in shared:
        for _ in range(n_workers):
            arguments = (rows, held_out, work, tasks, urgent, done)
            workers.append(context.Process(target=_work, args=arguments, daemon=True))
            workers[-1].start()
    waiting: list[tuple[Cell, int]] = []
    made = {cell.name for cell in cells}
    possible = [
        cell
        for cell in cells
        if cell.of in {*made, ""}
        or all(_inputs_are_there(cell, number, work) for number in range(cell.n_seeds))
    ]
    for cell in cells:
        if cell not in possible:
            print(f"{cell.name} needs the SAEs of {cell.of} in {work}", file=sys.stderr, flush=True)
    open_seeds = {cell.name: set(range(cell.n_seeds)) for cell in possible}
    for cell in possible:
        for number in range(cell.n_seeds):
            (tasks.put if _inputs_are_there(cell, number, work) else waiting.append)((cell, number))
    try:
        _collect(open_seeds, waiting, work, urgent, done, keep)
    finally:
        for worker in workers:
            worker.kill()


def _inputs_are_there(cell: Cell, number: int, work: Path) -> bool:
    return all(is_finished(seed_folder(work, *source)) for source in cell.inputs(number))


def _collect(
    open_seeds: dict[str, set[int]],
    waiting: list[tuple[Cell, int]],
    work: Path,
    urgent: Any,
    done: Any,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Keep the rows. Seeds are compared once a cell has all of them, and what waits for other SAEs
    is made once those are there, before anything else."""
    while open_seeds:
        what, cell, result = done.get()
        if what == "failed":
            open_seeds.pop(cell.name, None)
            print(f"{cell.name} failed: {result}", file=sys.stderr, flush=True)
        elif what == "compared":
            del open_seeds[cell.name]
            keep(result)
        elif cell.name in open_seeds:
            open_seeds[cell.name].discard(result)
            if not open_seeds[cell.name]:
                urgent.put((cell, None))
            for each in [each for each in waiting if _inputs_are_there(*each, work)]:
                waiting.remove(each)
                urgent.put(each)


def _work(
    rows: torch.Tensor, held_out: torch.Tensor, work: Path, tasks: Any, urgent: Any, done: Any
) -> None:
    torch.set_num_threads(1 if rows.is_cuda else torch.get_num_threads())
    if rows.is_cuda:
        torch.cuda.set_device(rows.device)
    work.mkdir(parents=True, exist_ok=True)
    while True:
        cell, number = _next(urgent, tasks)
        try:
            if number is None:
                done.put(("compared", cell, _compared(cell, work, held_out, rows)))
            else:
                if not is_finished(seed_folder(work, cell.name, number)):
                    make_sae(cell, number, rows, work)
                done.put(("trained", cell, number))
        except Exception as error:
            done.put(("failed", cell, traceback.format_exc()))
            # after an error on the device nothing else runs in this process
            if isinstance(error, torch.AcceleratorError):
                return


def _next(urgent: Any, tasks: Any) -> tuple[Cell, int | None]:
    """A seed of a cell to make, or without one a cell whose seeds are to be compared."""
    while True:
        for source, wait in ((urgent, 0.01), (tasks, 1.0)):
            try:
                return source.get(timeout=wait)
            except queue.Empty:
                continue


def _compared(cell: Cell, work: Path, held_out: torch.Tensor, rows: torch.Tensor) -> dict[str, Any]:
    folders = [seed_folder(work, cell.name, number) for number in range(cell.n_seeds)]
    saes = {folder.name: load_sae(str(folder), device=str(rows.device)) for folder in folders}
    seconds = [json.loads((folder / "seconds.json").read_text()) for folder in folders]
    seen = held_out
    if cell.outside is not None:
        seen = Outside(rows, cell.outside).removed_from(held_out)
    return {
        "cell": cell.name,
        "setting": asdict(cell),
        **compare(saes, seen, held_out),
        "training_seconds": mean(seconds),
    }
