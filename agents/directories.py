"""Directories that change all at once: whoever looks finds the old one or the new one, whatever has crashed."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def hidden(path: Path, suffix: str) -> Path:
    """A name beside ``path`` that nobody looks for."""
    return path.parent / f".{path.name}.{suffix}"


def replace_directory(new: Path, target: Path) -> None:
    """Flush ``new`` to the disk and give it the name ``target`` beside it, in place of a directory of that name.

    On Linux the two change places in one step (``renameat2`` with ``RENAME_EXCHANGE``), so ``target`` exists and is
    complete at every moment. Where the kernel or the file system cannot do that (macOS, Windows, some network file
    systems), the old directory is first renamed to ``.<name>.old``: a crash between the two renames leaves no
    ``target``, but the loaders of policies and of training states then read the one put aside.
    """
    _sync_tree(new)
    aside = hidden(target, "old")
    if target.exists() and not _exchange(new, target):
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    if new.exists() and not target.exists():
        new.rename(target)
    _sync(target.parent)
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _sync(path: Path) -> None:
    if os.name == "nt":
        return  # Windows flushes only what was opened for writing, and no directory
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        _sync(path)
    _sync(directory)
