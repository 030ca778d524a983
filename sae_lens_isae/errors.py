"""Errors that a user can mend, and the one place that makes them of other libraries' failures.

What this package refuses raises `InputError`; the command line prints that as one line. Everything
else is a bug and keeps its traceback. A library that reads what a user gave (YAML, safetensors,
CSV, SAELens' configs) runs inside `explained`, which names the file and says what to do.
"""

from __future__ import annotations

import argparse
import csv
import errno
import os
import struct
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError

_LONGEST_REASON = 300

_READING_FAILURES = (
    argparse.ArgumentError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    csv.Error,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    struct.error,
    yaml.YAMLError,
    zipfile.BadZipFile,
)
"""What libraries raise on data that are not what they expect."""

_DISK_FULL = ("file write failed", os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
"""torch and safetensors say so in words only."""

_OF_THE_MACHINE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.EMFILE,
    errno.EIO,
}
"""Errors of files and folders that no program can prevent."""


class InputError(ValueError):
    """What a user gave cannot be used. The message says what, why, and what to do."""


class MissingInputError(InputError, FileNotFoundError):
    """Something that a user named is not there. The message says how to get it."""


@contextmanager
def explained(subject: str | Path, problem: str, advice: str = "") -> Generator[None]:
    """Turn the failures of a library that reads a user's data into one sentence.

    The sentence is "SUBJECT PROBLEM: the library's reason; ADVICE". Wrap the library's call alone:
    a bug inside would be blamed on the data.

    Args:
        subject: The file, folder or setting.
        problem: What is wrong with it, e.g. "is not a YAML file".
        advice: What to do about it.

    Raises:
        InputError: In place of the library's error, and unchanged where it is one already.
    """
    try:
        yield
    except InputError:
        raise
    except _READING_FAILURES as error:
        if disk_is_full(error):
            raise
        hint = f"; {advice}" if advice else ""
        raise InputError(f"{subject} {problem}: {reason(error)}{hint}") from error


def reason(error: BaseException) -> str:
    """A library's message on one line, shortened; the kind of error where it has none."""
    kind = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    if not text:
        return kind
    if isinstance(error, LookupError):
        return f"{kind} {text}"
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " ..."


def disk_is_full(error: BaseException) -> bool:
    """Whether a library failed for want of space on a disk."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return isinstance(error, OSError | RuntimeError | SafetensorError) and any(
        words in str(error) for words in _DISK_FULL
    )


def sentence_of(error: BaseException) -> str | None:
    """What the command line says of an error; None for a bug, whose traceback is worth more."""
    if isinstance(error, InputError | argparse.ArgumentError):
        return str(error)
    if disk_is_full(error):
        return "the disk is full; free space and run the command again"
    if isinstance(error, torch.OutOfMemoryError):
        return f"{reason(error)} Use a smaller batch, fewer SAEs at a time, or --device cpu."
    if isinstance(error, MemoryError):
        return "there is not enough memory; use smaller sizes"
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        return f"{error.filename}: {error.strerror}"
    return None
