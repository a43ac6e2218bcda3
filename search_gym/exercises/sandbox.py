"""Call the functions of a file that nobody has read, in a process that is limited and that judges nothing.

What is contained, on Linux: processor time, wall time, memory, the size of files, the number of bytes that come back,
and the process group, all of it killed at the end. Where the kernel has Landlock (5.13 and later, most distributions),
only a temporary folder can be written, and since 6.7 there is no TCP. Where it lets ``unshare`` make namespaces, there
is no network at all, and no process survives, not even one that left the group. What is not contained: the submission
reads the files that the user can read, and changes the permissions of those that the user owns. `protections` names
what is in force. Grade strangers' work in a container.
"""

from __future__ import annotations

import contextlib
import ctypes
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
    """Wall time of the calls that are made together."""
    processor_seconds: int = 120
    """Processor time of each process."""
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


@functools.cache
def has_landlock() -> bool:
    """Whether the kernel lets a process give up writing files; ``_child.confine`` does so."""
    if sys.platform != "linux":
        return False
    return ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1)) >= 1


def protections() -> dict[str, bool]:
    """What a submission cannot do on this machine, and whether that is so."""
    return {
        "use more time and memory than allowed": sys.platform == "linux",
        "use the network": has_namespaces(),
        "leave processes behind": has_namespaces(),
        "write files of yours": has_landlock(),
    }


def call_functions(path: Path, calls: Sequence[Call], limits: SandboxLimits | None = None) -> list[CallResult]:
    """The result of each call of a function of the file ``path``, which never runs in this process."""
    with Sandbox(path, limits) as sandbox:
        return sandbox.call(calls)


class Sandbox:
    """The functions of one file, in one process for as long as it behaves; after a failure the next call has a new one.

    A context manager, at whose end the process is killed.
    """

    def __init__(self, path: Path, limits: SandboxLimits | None = None) -> None:
        self._path = path.resolve()
        self._limits = limits or SandboxLimits()
        self._process: _Process | None = None
        self._num_calls = 0

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def call(self, calls: Sequence[Call]) -> list[CallResult]:
        """The result of each call; together they may take as long as the limits say."""
        if not calls:
            return []
        first, self._num_calls = self._num_calls, self._num_calls + len(calls)
        numbers = range(first, self._num_calls)
        request = pickle.dumps((first, [(name, args, dict(kwargs)) for name, args, kwargs in calls]))
        if self._process is None:
            self._process = _Process(self._path, self._limits)
        lines, reason = self._process.ask(request, self._limits, len(calls))
        results, reason = _results(lines, numbers, reason)
        if len(results) < len(calls):
            self._stop()
        return [results.get(number, CallResult(error=reason)) for number in numbers]

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None


class _Process:
    """A process that has imported the file, and the two pipes to it."""

    def __init__(self, path: Path, limits: SandboxLimits) -> None:
        self._answers, answers = os.pipe()
        requests, self._requests = os.pipe()
        os.set_blocking(self._requests, False)
        self._folder = tempfile.TemporaryDirectory()
        home = self._folder.name
        command = [sys.executable, "-I", str(Path(__file__).with_name("_child.py")), str(path), str(answers)]
        try:
            self._process = subprocess.Popen(
                [*_UNSHARE, *command] if has_namespaces() else command,
                stdin=requests,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=home,
                env={"PATH": os.defpath, "HOME": home, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                pass_fds=(answers,),
                start_new_session=True,
                preexec_fn=functools.partial(_limit, limits),
            )
        finally:
            os.close(answers)
            os.close(requests)

    def ask(self, request: bytes, limits: SandboxLimits, num_lines: int) -> tuple[list[bytes], str]:
        """The lines that came back, and why there are fewer than ``num_lines``, "" if there are not."""
        deadline = time.monotonic() + limits.seconds
        answer = bytearray()
        while (left := deadline - time.monotonic()) > 0:
            ended = self._process.poll() is not None
            writable = [self._requests] if request else []
            readable, writable, _ = select.select([self._answers], writable, [], 0 if ended else min(left, 0.1))
            if writable:
                try:
                    request = request[os.write(self._requests, request[: 1 << 16]) :]
                except BlockingIOError:
                    pass
                except BrokenPipeError:
                    request = b""
            if not readable:
                if ended:
                    break
                continue
            piece = os.read(self._answers, 1 << 16)
            answer += piece
            if len(answer) > limits.answer_bytes:
                return _lines(answer), f"it returned more than {limits.answer_bytes:,} bytes"
            if piece.endswith(b"\n") and answer.count(b"\n") >= num_lines:
                return _lines(answer), ""
            if not piece:
                break
        else:
            return _lines(answer), f"it took more than {limits.seconds:g} s"
        return _lines(answer), "the process ended before it answered"

    def kill(self) -> None:
        """End the process and its group, and close the pipes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._answers)
        os.close(self._requests)
        self._folder.cleanup()


def _lines(answer: bytearray) -> list[bytes]:
    return bytes(answer).split(b"\n")[:-1]


def _limit(limits: SandboxLimits) -> None:
    import resource

    for what, most in (
        (resource.RLIMIT_CPU, limits.processor_seconds),
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, limits.processes),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def _results(lines: Sequence[bytes], numbers: range, reason: str) -> tuple[dict[int, CallResult], str]:
    """The results of the calls of these numbers, and why there are no others."""
    results: dict[int, CallResult] = {}
    for line in lines:
        try:
            row = json.loads(line)
            if "import_error" in row:
                reason = f"the file could not be imported: {row['import_error']}"
            elif row["call"] not in numbers:
                raise ValueError("an answer to another call")
            elif "error" in row:
                results.setdefault(int(row["call"]), CallResult(error=str(row["error"])))
            else:
                value, args = _decode(row["value"]), tuple(_decode(row["args"]))
                results.setdefault(int(row["call"]), CallResult(value, args))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            reason = "it wrote what is no answer"
    return results, reason


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
