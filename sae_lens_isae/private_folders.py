"""Folders whose files are trusted: only this user writes there, and nobody else can prepare them.

SAEBench keeps the probes that it trains as pickles, and reading a pickle runs what is in it.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path

from sae_lens_isae.errors import InputError, explained
from sae_lens_isae.files import cache_folder, write_whole

_SECRET_FILE = "secret"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_folder(folder: Path) -> Path:
    """Make a folder that only this user can write, or check that one is.

    Raises:
        InputError: It belongs to somebody else, or others may write there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not hasattr(os, "getuid"):
        return folder
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & _OTHERS_WRITE or folder.is_symlink():
        raise InputError(
            f"{folder} is a link, belongs to another user, or others may write there; SAEBench "
            "keeps pickled probes in it, which can run code when they are read. Name another "
            f"folder (--out), or `chown`, `chmod go-w` or delete {folder}"
        )
    return folder


def secret_folder(parent: Path, key: str) -> Path:
    """The folder for `key` below `parent`, under a name that nobody else can guess: files that came
    with a folder of results from elsewhere are never read.

    Raises:
        InputError: This user's secret cannot be read or written.
    """
    return private_folder(parent / hmac.new(_secret(), key.encode(), "sha256").hexdigest()[:16])


def _secret() -> bytes:
    path = private_folder(cache_folder() / "private") / _SECRET_FILE
    with explained(path, "cannot be read or written", "set SAE_LENS_ISAE_CACHE to a folder"):
        if not path.exists():

            def write(scratch: Path) -> None:
                scratch.touch(mode=0o600)
                scratch.write_bytes(secrets.token_bytes(32))

            write_whole(path, write)
        return path.read_bytes()
