"""`isae` in a process of its own, forked from one that has imported torch and SAELens.

A fresh interpreter needs seconds for these imports, which is more than most commands of the tests
take.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

# SAELens asks for a GPU when it is imported, after which no fork could use it, unless NVML is asked
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["__main__", "isae_cli.app", "sae_lens_isae"])


def _run(
    arguments: Sequence[str], cwd: Path, env: Mapping[str, str], outputs: Sequence[Path]
) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for descriptor, path in enumerate(outputs, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = ["isae", *arguments]
    from isae_cli.app import main

    main()


class ForkedCommand:
    """A running command, with what the tests use of `subprocess.Popen`.

    Args:
        arguments: What follows `isae`.
        cwd: Folder to run in.
        env: Changes to this process's environment. Variables that a library reads when it is
            imported come too late.
    """

    def __init__(self, arguments: Sequence[object], cwd: Path, **env: str) -> None:
        self._folder = TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        for path in self._outputs:
            path.touch()
        self._process = _FORKS.Process(
            target=_run,
            args=(list(map(str, arguments)), cwd, {**os.environ, **env}, self._outputs),
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """As of `subprocess`: negative after a signal, None while the command runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """SIGKILL and whatever else."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, at most `timeout` seconds, for standard output and error.

        Raises:
            subprocess.TimeoutExpired: The command still runs.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("isae", timeout or 0.0)
        stdout, stderr = (path.read_text("utf-8", errors="replace") for path in self._outputs)
        return stdout, stderr
