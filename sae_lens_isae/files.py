"""Files that are written whole or not at all, the folders that hold them, names for contents."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch

from sae_lens_isae.errors import InputError, reason

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind
    fcntl = None

_PARTIAL = ".partial"
"""Ending of files and folders that are being written; their names begin with a dot."""
_BLOCK = 1 << 20
_OURS = re.compile(rf"\.[0-9a-f]{{12}}{re.escape(_PARTIAL)}$")
_DEEPEST = 4
"""Levels below a folder of results on which files are written."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]{0,99}")


def _unique() -> str:
    return f".{uuid.uuid4().hex[:12]}{_PARTIAL}"


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that an interruption leaves the old one or none, never half of one.

    Several processes may write the same file: one of them wins, and no two share a scratch file.
    """
    scratch = path.with_name(f".{path.name}{_unique()}")
    try:
        write(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def unique_folder(folder: Path) -> Path:
    """A new folder in `folder` to write in; if it is left, the next command clears it."""
    scratch = folder / _unique()
    scratch.mkdir(parents=True)
    return scratch


@contextmanager
def whole_folder(folder: Path) -> Generator[Path]:
    """A folder to write in, whose files move to `folder` when all of them are written."""
    scratch = unique_folder(folder)
    try:
        yield scratch
        move_files(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def move_files(source: Path, folder: Path) -> None:
    """Move all files below a folder to the same places below another, over those that are there."""
    for file in [file for file in source.rglob("*") if file.is_file()]:
        place = folder / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)


def json_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table for JSON, where pandas writes missing values as null."""
    return json.loads(str(table.to_json(orient="records")))


TableFormat = Literal["parquet", "csv"]


def write_table(path: Path, table: pd.DataFrame, table_format: TableFormat) -> Path:
    """Write a table, whole or not at all, and return its file.

    Args:
        path: Without ending.

    Raises:
        InputError: There is no such format.
    """
    if table_format not in get_args(TableFormat):
        raise InputError(f"table must be parquet or csv, got {table_format!r}")
    path = path.with_name(f"{path.name}.{table_format}")
    if table_format == "csv":
        write_whole(path, lambda scratch: table.to_csv(scratch, index=False))
    else:
        write_whole(path, lambda scratch: table.to_parquet(scratch, index=False))
    return path


def write_json(path: Path, data: Any, indent: int | None = 2) -> None:
    """Write JSON, whole or not at all; NaN and Inf are refused."""
    text = json.dumps(data, indent=indent, allow_nan=False) + "\n"
    write_whole(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


@contextmanager
def output_folder(folder: Path, flag: str = "--out") -> Generator[Path]:
    """Make a folder for results and keep other processes from writing there meanwhile.

    Entered before any work is done, so that a folder that cannot be written costs nothing. Folders
    that were made here and are still empty at the end are removed again. The lock is advisory and
    ends with the process; a file system without locks does without.

    Args:
        flag: The option that names the folder, for messages.

    Raises:
        InputError: It is a file, cannot be made or written, or another process holds it.
    """
    made = _make(folder, flag)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"another process is writing to {folder}; wait for it to end, or name another "
                    f"folder ({flag})"
                ) from None
            except OSError:
                pass
        _clear_what_was_killed(folder)
        yield folder
    finally:
        os.close(descriptor)
        for empty in made:
            with contextlib.suppress(OSError):
                empty.rmdir()


def _clear_what_was_killed(folder: Path) -> None:
    """Remove what processes left that were killed; nobody else writes here now."""
    for depth in range(_DEEPEST + 1):
        for left in list(folder.glob("*/" * depth + f".*{_PARTIAL}")):
            if _OURS.search(left.name):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def _make(folder: Path, flag: str) -> list[Path]:
    """Make a folder that can be written; those that were not there before, innermost first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / _unique()
        probe.touch()
        probe.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{flag} {folder} is, or lies below, a file; name a folder") from error
    except OSError as error:
        raise InputError(
            f"{flag} {folder} cannot be written: {reason(error)}; name another folder"
        ) from error
    return made


def fingerprint(tensors: Sequence[torch.Tensor], settings: Any) -> str:
    """A name for a computation: equal weights, activations and settings have an equal one."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for tensor in tensors:
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(
            tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A name for the contents of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()[:16]


def file_stem(name: str) -> str:
    """A file name for something that has a name, different for different names.

    Names of plain characters are kept. Of all others the plain characters stay, followed by a hash
    of the whole: `a/b` and `a_b` are two files, and no name leads out of a folder.
    """
    if _PLAIN_NAME.fullmatch(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_.+=-]+", "_", name).strip("._-")[-60:]
    return f"{plain or 'unnamed'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def cache_folder() -> Path:
    """Where converted models and this user's secret are kept."""
    default = Path.home() / ".cache" / "sae-lens-isae"
    return Path(os.environ.get("SAE_LENS_ISAE_CACHE", default))
