"""Several measurements at the same time: each a process of its own, on the next free GPU."""

from __future__ import annotations

import os
import queue
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
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
