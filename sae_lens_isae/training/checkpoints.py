"""Training that loses nothing: a stop between two steps, whole checkpoints, an exact resume.

SAELens raises its interrupt in the middle of a step, writes the checkpoint of a single run into a
folder that it never makes, and resumes with an empty buffer.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAETrainer, logger
from sae_lens.constants import (
    RUNNER_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
    TRAINER_STATE_FILENAME,
)
from sae_lens.training.multi_sae_trainer import MultiSAETrainer

from sae_lens_isae._private import count_tokens
from sae_lens_isae.distributed import agreed, rank, wait_for_all
from sae_lens_isae.errors import InputError, MissingInputError, explained
from sae_lens_isae.files import unique_folder
from sae_lens_isae.training.activation_stream import STATE_FILENAME, ActivationStream
from sae_lens_isae.training.data_parallel import SharedFlag, share_steps
from sae_lens_isae.training.normalization import estimate_normalization
from sae_lens_isae.training.step_streams import step_beside_each_other

Trainer = SAETrainer[Any, Any] | MultiSAETrainer


class Stopped(InputError):
    """The run was interrupted, and what it had reached is kept. The message says how to go on."""


def fit(
    trainer: Trainer,
    stream: ActivationStream,
    resume_from: Path | None,
    load_elsewhere: Callable[[Path], None],
) -> Any:
    """Run a trainer of SAELens to its end, so that nothing is lost where it does not get there.

    SIGINT (Ctrl-C) and SIGTERM end the run after the present step, with a checkpoint. Checkpoints
    get their name only when they are whole. A second signal stops at once.

    Args:
        stream: The batches, by the names of the trainer's SAEs; the only SAE of a run is `""`.
        resume_from: A checkpoint to go on from.
        load_elsewhere: Called with the checkpoint if it was not written by this package, and knows
            no more of the activations than how many texts were read.

    Returns:
        What `trainer.fit()` returns.

    Raises:
        Stopped: A signal came.
        InputError: The checkpoint cannot be resumed.
    """
    stop = _StopRequest()

    def batches() -> Iterator[dict[str, torch.Tensor]]:
        while True:
            stop.check()
            yield next(stream)

    found = batches()
    if isinstance(trainer, SAETrainer):
        trainer.data_provider = (batch[""] for batch in found)
        trainers = {"": trainer}
    else:
        # every SAE has an order of the activations of its own
        trainer.hook_names = {name: name for name in trainer.trainers}
        trainer.data_provider = found
        trainers = trainer.trainers
    for number, each in enumerate(trainers.values()):
        each.sae.to(each.cfg.device)
        share_steps(each, stop.flag if number == 0 else None)
    if len(trainers) > 1:
        step_beside_each_other(list(trainers.values()))
    _keep_checkpoints_whole(trainer, stream)
    count_tokens(trainer)
    if resume_from is not None:
        _resume(trainer, stream, resume_from, load_elsewhere)
    with stop.listening():
        try:
            estimate_normalization(trainers, found)
            return trainer.fit()
        except _StopRequested:
            raise Stopped(_save(trainer)) from None


LATEST = "latest"
"""In place of a checkpoint's folder: the one that was written last, if there is one."""


def find_checkpoint(
    resume_from: str | None, checkpoint_path: str | None, names: Sequence[str]
) -> Path | None:
    """The checkpoint that a user means.

    Args:
        resume_from: A folder, or `latest`.
        checkpoint_path: Of the run: `<folder>/<id>`. `latest` looks at all runs in that folder.
        names: Of the SAEs; empty for a run with one.

    Returns:
        None to begin from the start: nothing was asked for, or no checkpoint is there yet.

    Raises:
        InputError: `latest` of nowhere, or of runs with other SAEs.
    """
    if resume_from != LATEST:
        return None if resume_from is None else Path(resume_from)
    if checkpoint_path is None:
        raise InputError(
            "resume_from_checkpoint latest looks for checkpoints in checkpoint_path, which is empty"
        )
    base = Path(checkpoint_path).parent
    # those that are being written lie in folders whose names begin with a dot
    whole = [
        folder
        for folder in base.glob("*/*")
        if not any(part.startswith(".") for part in folder.relative_to(base).parts)
        and any(folder.rglob(TRAINER_STATE_FILENAME))
    ]
    if not whole:
        logger.info(f"there is no checkpoint in {base} yet; the run begins from the start")
        return None
    states = [Path(name, TRAINER_STATE_FILENAME) for name in names or [""]]
    fitting = [folder for folder in whole if all((folder / s).is_file() for s in states)]
    if not fitting:
        raise InputError(
            f"{base} has checkpoints, but none of {', '.join(names) or 'a run with one SAE'}; "
            "resume with the number of seeds that the run had, or name another checkpoint_path"
        )
    return max(fitting, key=lambda folder: (folder / states[0]).stat().st_mtime_ns)


def check_checkpoint(folder: Path, names: Sequence[str]) -> None:
    """Refuse a checkpoint that cannot be resumed, before anything is loaded.

    Args:
        names: Of the SAEs, whose folders lie in it; empty for a run with one.

    Raises:
        InputError: It is incomplete.
        MissingInputError: There is none.
    """
    if not folder.is_dir():
        raise MissingInputError(
            f"there is no checkpoint {folder}; checkpoints lie in <checkpoint_path>/<id>/<tokens>"
        )
    for name in names or [""]:
        of_sae = folder / name
        missing = [
            file
            for file in (TRAINER_STATE_FILENAME, SAE_WEIGHTS_FILENAME, RUNNER_CFG_FILENAME)
            if not ((folder if file == RUNNER_CFG_FILENAME else of_sae) / file).is_file()
        ]
        if missing:
            raise InputError(
                f"{of_sae} is no checkpoint of this run: {', '.join(missing)} is missing; name the "
                "folder of a checkpoint (--resume_from_checkpoint), written by a run with the same "
                "number of seeds"
            )


class _StopRequested(BaseException):
    """Between two steps."""


class _StopRequest:
    def __init__(self) -> None:
        self.flag = SharedFlag()

    def check(self) -> None:
        """Stop the run here if a signal came, on several ranks at the same step on all of them."""
        if self.flag.is_seen():
            raise _StopRequested

    @contextlib.contextmanager
    def listening(self) -> Generator[None]:
        """Take signals as a request; only a process's first thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGINT, signal.SIGTERM)
        before = {kind: signal.getsignal(kind) for kind in kinds}

        def note(*_: object) -> None:
            if self.flag.is_raised:
                raise KeyboardInterrupt
            self.flag.is_raised = True

        for kind in kinds:
            signal.signal(kind, note)
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)


def _keep_checkpoints_whole(trainer: Trainer, stream: ActivationStream) -> None:
    """Write checkpoints under another name first, with the state of the activations in them.

    Rank 0 writes what all ranks have in common, and every rank where its activations stand.
    """
    save = trainer.save_checkpoint

    def save_whole(checkpoint_name: str, *args: Any, **kwargs: Any) -> None:
        path = trainer.cfg.checkpoint_path
        if path is None:
            if rank() == 0:
                save(checkpoint_name, *args, **kwargs)
            return
        scratch = agreed(unique_folder(Path(path)) if rank() == 0 else None)
        assert scratch is not None
        try:
            if rank() == 0:
                trainer.cfg.checkpoint_path = str(scratch)
                save(checkpoint_name, *args, **kwargs)
            wait_for_all()
            stream.save(scratch / checkpoint_name)
            wait_for_all()
            if rank() == 0:
                final = Path(path) / checkpoint_name
                shutil.rmtree(final, ignore_errors=True)
                (scratch / checkpoint_name).rename(final)
        finally:
            trainer.cfg.checkpoint_path = path
            if rank() == 0:
                shutil.rmtree(scratch, ignore_errors=True)

    trainer.save_checkpoint = save_whole


def _resume(
    trainer: Trainer,
    stream: ActivationStream,
    folder: Path,
    load_elsewhere: Callable[[Path], None],
) -> None:
    with explained(
        folder,
        "cannot be resumed",
        "use the settings of the run that wrote it, or an earlier checkpoint",
    ):
        if isinstance(trainer, SAETrainer):
            trainer.load_trainer_state(folder)
            trainer.sae.load_weights_from_checkpoint(folder)
        else:
            trainer.load_checkpoint(folder)
    for each in [trainer] if isinstance(trainer, SAETrainer) else [*trainer.trainers.values()]:
        # SAELens writes checkpoints before it counts the step, and would save passed ones again
        each.n_training_steps = each.n_training_samples // each.cfg.train_batch_size_samples
    trainer.n_training_steps = trainer.n_training_samples // trainer.cfg.train_batch_size_samples
    trainer.checkpoint_thresholds = [
        threshold
        for threshold in trainer.checkpoint_thresholds
        if threshold >= trainer.n_training_samples
    ]
    if (folder / STATE_FILENAME).is_file():
        stream.load(folder)
        return
    load_elsewhere(folder)
    warnings.warn(
        f"{folder} is not resumed exactly, since it has no {STATE_FILENAME}: the text goes on near "
        "where it was, and the buffer is refilled",
        stacklevel=3,
    )


def _save(trainer: Trainer) -> str:
    n_tokens = trainer.n_training_samples
    path = trainer.cfg.checkpoint_path
    if path is None:
        return (
            f"stopped after {n_tokens} tokens; nothing was saved, because checkpoint_path is empty"
        )
    if not n_tokens:
        return "stopped before the first step; there was nothing to save"
    trainer.save_checkpoint(checkpoint_name=str(n_tokens))
    folder = Path(path) / str(n_tokens)
    return (
        f"stopped after {n_tokens} tokens, with a checkpoint in {folder}; go on with the same "
        f"command and --resume_from_checkpoint {folder}"
    )
