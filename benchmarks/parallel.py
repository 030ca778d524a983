"""Several measurements at the same time: each a process of its own, on the next free GPU.

Every result is kept as soon as it is there, and what a result file holds is not measured again.
"""

from __future__ import annotations

import json
import os
import queue
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from provenance import RESULTS, keep_result
from tqdm.auto import tqdm


def run_all(
    commands: Sequence[Sequence[str]], logs: Sequence[Path], jobs: int, what: str
) -> Iterator[int]:
    """Run every command, `jobs` at a time, and yield the number of each that is done.

    Raises:
        RuntimeError: One of them failed; the message names its log.
    """
    slots: queue.Queue[int] = queue.Queue()
    for slot in range(jobs):
        slots.put(slot)
    n_gpus = torch.cuda.device_count()

    def run(number: int) -> int:
        command, log = commands[number], logs[number]
        slot = slots.get()
        gpu = {"CUDA_VISIBLE_DEVICES": str(slot % n_gpus)} if n_gpus > 1 else {}
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("w") as file:
                done = subprocess.run(
                    command, stdout=file, stderr=file, check=False, env={**os.environ, **gpu}
                )
        finally:
            slots.put(slot)
        if done.returncode:
            raise RuntimeError(f"{what}: {shlex.join(command)} failed; {log} says why")
        return number

    with ThreadPoolExecutor(jobs) as pool:
        runs = [pool.submit(run, number) for number in range(len(commands))]
        for done in tqdm(as_completed(runs), total=len(runs), desc=what):
            yield done.result()


def kept_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a result file, none where there is no file."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def measure_missing(
    name: str,
    key: str,
    wanted: Sequence[str | int],
    setting: dict[str, Any],
    jobs: int,
    order: Sequence[str | int],
) -> list[dict[str, Any]]:
    """All rows of a result file, once the `wanted` ones are in it.

    A row is measured by this script with `--one ROW FILE`, which writes it to FILE.

    Args:
        key: The field that names a row.
        order: In which rows are kept; others come last.
    """
    rows = kept_rows(name)
    rank = {row: number for number, row in enumerate(order)}
    missing = [w for w in wanted if w not in {row[key] for row in rows}]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.json" for i in range(len(missing))]
        commands = [
            [sys.executable, *sys.argv, "--one", str(row), str(file)]
            for row, file in zip(missing, files, strict=True)
        ]
        logs = [Path(f"{name}_logs") / f"{i}.log" for i in range(len(missing))]
        for done in run_all(commands, logs, jobs, name):
            rows.append(json.loads(files[done].read_text()))
            rows.sort(key=lambda row: rank.get(row[key], len(rank)))
            keep_result(name, {"setting": setting, "rows": rows})
    return rows
