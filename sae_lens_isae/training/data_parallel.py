"""One training run on several GPUs or machines, started by `torchrun`.

Every rank trains on an equal share of each batch, from its own share of the text. Gradients are
averaged, and what SAELens' trainer counts over a batch is added up, so that all ranks take the step
that one process would take on the whole batch. (What the losses and the recipe need of the whole
batch they ask for themselves, see `distributed`.)
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Generator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
import torch.distributed as dist
from sae_lens import LanguageModelSAERunnerConfig, SAETrainer
from sae_lens.saes.sae import TrainStepOutput

from sae_lens_isae.distributed import agreed, n_ranks, summed
from sae_lens_isae.errors import InputError, reason
from sae_lens_isae.ops.lagging import LaggingCopies

Parallel = Literal["auto", "data", "seeds"]
Run = TypeVar("Run")

_SECONDS_TO_STOP = 15
"""After SIGTERM, until a rank that waits for others gives up; torchrun kills after 30."""


class Launch(NamedTuple):
    """What a launcher says of this process."""

    rank: int
    n_ranks: int
    local_rank: int
    """Its number on this machine, and of its GPU."""


def launched() -> Launch:
    """How this process was started: by `torchrun` as one of several, or alone."""
    names = {"rank": "RANK", "n_ranks": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
    found = {field: os.environ.get(name) for field, name in names.items()}
    if any(value is None for value in found.values()):
        return Launch(0, 1, 0)
    return Launch(**{field: int(value or 0) for field, value in found.items()})


@contextlib.contextmanager
def together(
    cfg: LanguageModelSAERunnerConfig[Any], runs: Mapping[str, Run], parallel: Parallel
) -> Generator[Mapping[str, Run]]:
    """Let the processes of this launch divide the work, and put each on its GPU.

    Args:
        cfg: Its devices are changed, and only rank 0 logs to Weights & Biases.
        runs: By the names of their SAEs.

    Yields:
        The runs that this process takes part in: all on shares of the batches, or some as a whole.

    Raises:
        InputError: The processes cannot divide it so, or another rank is gone.
    """
    launch = launched()
    if parallel not in get_args(Parallel):
        raise InputError(
            f"parallel must be one of {', '.join(get_args(Parallel))}, got {parallel!r}"
        )
    if launch.n_ranks == 1:
        yield runs
        return
    for name in ("device", "llm_device", "act_store_device"):
        if getattr(cfg, name) == "cuda":
            setattr(cfg, name, f"cuda:{launch.local_rank}")
    even = len(runs) % launch.n_ranks == 0
    if parallel == "seeds" and not even:
        raise InputError(
            f"{launch.n_ranks} processes cannot divide {len(runs)} seeds equally; make --seeds a "
            f"multiple of {launch.n_ranks}, or share the batches (--parallel data)"
        )
    if parallel == "seeds" or (parallel == "auto" and even):
        mine = list(runs)[launch.rank :: launch.n_ranks]
        yield {name: runs[name] for name in mine}
        return
    if launch.rank:
        cfg.logger.log_to_wandb = False
    with data_parallel(cfg.device):
        # every process has made a name for its checkpoints
        cfg.checkpoint_path = agreed(cfg.checkpoint_path)
        yield runs


@contextlib.contextmanager
def data_parallel(device: str) -> Generator[None]:
    """Train together with the other ranks of this launch, over NCCL on GPUs and Gloo on CPUs.

    Raises:
        InputError: Another rank is gone.
    """
    on_gpus = torch.device(device).type == "cuda"
    if on_gpus:
        torch.cuda.set_device(device)
    # hooks on gradients are set on another stream than the one of the steps; autograd joins them
    warnings.filterwarnings("ignore", message="The AccumulateGrad node's stream")
    dist.init_process_group("nccl" if on_gpus else "gloo")
    try:
        with _giving_up_when_stuck():
            yield
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not _is_of_a_lost_rank(error):
            raise
        raise InputError(
            f"rank {launched().rank}: another rank ended, so this one cannot go on "
            f"({reason(error)}); its own message says why. Resume with --resume_from_checkpoint "
            "latest"
        ) from error
    finally:
        dist.destroy_process_group()


class SharedFlag:
    """A flag that one rank raises and all of them see before the same step."""

    def __init__(self) -> None:
        self.is_raised = False
        """Here."""
        self._counts = LaggingCopies()

    def share(self, count: torch.Tensor) -> None:
        """Hand in on how many ranks it was raised at this step."""
        self._counts.push(0, count)

    def is_seen(self) -> bool:
        """Whether it was raised anywhere, as far as all ranks know; to be asked once a step."""
        if n_ranks() == 1:
            return self.is_raised
        return any(bool(count) for _, count in self._counts.pop())


def share_steps(trainer: SAETrainer[Any, Any], flag: SharedFlag | None = None) -> None:
    """Let a trainer's step on a share of the batch be the step on the whole batch.

    Args:
        flag: Goes to all ranks along with the counts.
    """
    if n_ranks() == 1:
        return
    for tensor in [*trainer.sae.parameters(), *trainer.sae.buffers()]:
        # equal seeds make equal weights, unless ranks run other versions
        dist.broadcast(_contiguous_view(tensor.data), 0)
    for parameter in trainer.sae.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average_gradient)
    step = trainer.step

    def step_on_share(batch: torch.Tensor) -> TrainStepOutput:
        frequency = trainer.act_freq_scores.clone()
        passes = trainer.n_forward_passes_since_fired.clone()
        output = step(batch)
        fired = trainer.act_freq_scores - frequency
        if flag is None:
            fired = summed(fired)
        else:
            counts = summed(torch.cat([fired, fired.new_full((1,), flag.is_raised)]))
            fired = counts[:-1]
            flag.share(counts[-1])
        trainer.act_freq_scores = frequency + fired
        trainer.n_forward_passes_since_fired = torch.where(fired > 0, 0, passes + 1)
        trainer.n_training_samples += (n_ranks() - 1) * len(batch)
        return output

    trainer.step = step_on_share


def _average_gradient(parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    grad = _contiguous_view(parameter.grad)
    if parameter.is_cuda:
        dist.all_reduce(grad, dist.ReduceOp.AVG)
        return
    # which Gloo does not know
    dist.all_reduce(grad)
    grad /= n_ranks()


def _contiguous_view(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor or its transpose, whichever lies in memory in order: what collectives take."""
    return tensor if tensor.is_contiguous() else tensor.T


def _is_of_a_lost_rank(error: Exception) -> bool:
    said = str(error)
    return isinstance(error, dist.DistError) or any(
        words in said for words in ("gloo", "NCCL", "closed by peer", "reset by peer")
    )


@contextlib.contextmanager
def _giving_up_when_stuck() -> Generator[None]:
    """End this process some time after SIGTERM if it still waits, in a collective, for a rank that
    is gone: Python's handlers run between two of its instructions only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    done = threading.Event()

    def watch() -> None:
        # SIGINT and others arrive here too
        while received := reading.recv(1):
            if received[0] == signal.SIGTERM and not done.wait(_SECONDS_TO_STOP):
                print(
                    f"error: rank {launched().rank}: stopped while it waited for another rank; "
                    "resume with --resume_from_checkpoint latest",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        done.set()
        writing.close()
        thread.join()
        reading.close()
