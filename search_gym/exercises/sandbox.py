"""Call the functions of a file that nobody has read, in a process that is limited and that judges nothing.

What is contained, on Linux: processor time, wall time, memory, the size of files, the number of bytes that come back,
and the process group, all of it killed at the end. Where the kernel lets ``unshare`` make namespaces, there is also no
network, and no process survives, not even one that left the group. What is not contained: the submission reads the
files that the user can read and, within the size limit, writes those that the user can write; without namespaces it
can use the network. Grade strangers' work in a container or as a user of its own.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Call = tuple[str, tuple[Any, ...], Mapping[str, Any]]
"""The name of a function, its arguments, its keyword arguments."""

_UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")


@dataclass(frozen=True)
class SandboxLimits:
    """What a submission may use."""

    seconds: float = 20.0
    """Wall time of all calls together; processor time has the same limit, rounded up."""
    memory_bytes: int = 2 << 30
    """Address space of each process."""
    file_bytes: int = 10 << 20
    """Size of a file that it writes."""
    answer_bytes: int = 16 << 20
    """Bytes that come back."""
    processes: int = 256
    """Processes and threads of the user; not a limit for root, whose processes are killed at the end all the same."""


@dataclass(frozen=True)
class CallResult:
    """What one call came to: ``error`` is None, or says why there is no ``value``."""

    value: Any = None
    args: tuple[Any, ...] = ()
    """The arguments after the call, to see whether they were changed."""
    error: str | None = None


@functools.cache
def has_namespaces() -> bool:
    """Whether network and processes can be shut in on this machine."""
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0


def call_functions(path: Path, calls: Sequence[Call], limits: SandboxLimits | None = None) -> list[CallResult]:
    """The result of each call of a function of the file ``path``, which never runs in this process."""
    limits = limits or SandboxLimits()
    read_end, write_end = os.pipe()
    child = Path(__file__).with_name("_child.py")
    command = [sys.executable, "-I", str(child), str(path.resolve()), str(write_end)]
    with (
        os.fdopen(read_end, "rb") as pipe,
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as request,
    ):
        pickle.dump([(name, args, dict(kwargs)) for name, args, kwargs in calls], request)
        request.seek(0)
        try:
            process = subprocess.Popen(
                [*_UNSHARE, *command] if has_namespaces() else command,
                stdin=request,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={"PATH": os.defpath, "HOME": folder, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=(write_end,),
                start_new_session=True,
                preexec_fn=functools.partial(_limit, limits),
            )
        finally:
            os.close(write_end)
        try:
            answer, reason = _read(pipe.fileno(), process, limits)
        finally:
            _kill(process)
    return _results(answer, len(calls), reason)


def _limit(limits: SandboxLimits) -> None:
    import resource

    seconds = int(limits.seconds) + 1
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, limits.processes),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def _read(pipe: int, process: subprocess.Popen[bytes], limits: SandboxLimits) -> tuple[bytes, str]:
    """What came through the pipe, and why nothing more did."""
    deadline = time.monotonic() + limits.seconds
    pieces: list[bytes] = []
    size = 0
    while (left := deadline - time.monotonic()) > 0:
        ended = process.poll() is not None
        if not select.select([pipe], [], [], 0 if ended else min(left, 0.1))[0]:
            if ended:
                return b"".join(pieces), "the process ended before it answered"
            continue
        piece = os.read(pipe, 1 << 16)
        size += len(piece)
        if not piece:
            return b"".join(pieces), "the process ended before it answered"
        if size > limits.answer_bytes:
            return b"".join(pieces), f"it returned more than {limits.answer_bytes:,} bytes"
        pieces.append(piece)
    return b"".join(pieces), f"it took more than {limits.seconds:g} s"


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _results(answer: bytes, count: int, reason: str) -> list[CallResult]:
    results: dict[int, CallResult] = {}
    for line in answer.split(b"\n")[:-1]:
        try:
            row = json.loads(line)
            if "import_error" in row:
                reason = f"the file could not be imported: {row['import_error']}"
            elif "error" in row:
                results.setdefault(int(row["call"]), CallResult(error=str(row["error"])))
            else:
                value, args = _decode(row["value"]), tuple(_decode(row["args"]))
                results.setdefault(int(row["call"]), CallResult(value, args))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            reason = "it wrote what is no answer"
    return [results.get(number, CallResult(error=reason)) for number in range(count)]


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "dtype" in value:
        dtype = np.dtype(value["dtype"])
        if dtype.kind not in "biuf":
            raise ValueError(f"expected a dtype of numbers or booleans, got {dtype}")
        return np.array(value["data"], dtype=dtype).reshape(value["shape"])
    if "dict" in value:
        return {str(key): _decode(item) for key, item in value["dict"].items()}
    items = [_decode(item) for item in value["tuple" if "tuple" in value else "list"]]
    return tuple(items) if "tuple" in value else items
