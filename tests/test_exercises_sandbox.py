"""Submissions that attack the sandbox: none forges a value, none outlives its limits, none touches this process."""

import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from search_gym.exercises.sandbox import CallResult, SandboxLimits, call_functions, has_namespaces

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits are those of Linux")


def run(tmp_path, source, *args, seconds=20.0) -> CallResult:
    path = tmp_path / "submission.py"
    path.write_text(source, encoding="utf-8")
    return call_functions(path, [("f", args, {})], SandboxLimits(seconds=seconds))[0]


def test_values_come_back_with_type_and_shape_and_so_do_changed_arguments(tmp_path):
    source = "def f(x):\n    y = (x * 2, [1.5, None, 'a'])\n    x[:] = 0\n    return y"
    given = np.arange(6, dtype=np.int32).reshape(2, 3)
    result = run(tmp_path, source, given)
    assert result.error is None
    doubled, rest = result.value
    assert doubled.dtype == np.int32
    assert np.array_equal(doubled, given * 2)
    assert rest == [1.5, None, "a"]
    assert not result.args[0].any()
    assert given.any()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def f():\n    while True: pass", "took more than"),
        ("import os\ndef f():\n    os._exit(0)", "ended before it answered"),
        ("import sys\ndef f():\n    sys.exit(0)", "SystemExit"),
        ("raise RuntimeError('no')", "could not be imported: RuntimeError: no"),
        ("import os\nos._exit(0)", "ended before it answered"),
        ("def f():\n    return bytearray(10 << 30)", "MemoryError"),
        ("def f():\n    return object()", "TypeError"),
        ("def g():\n    return 1", "AttributeError"),
        ("import os, sys\nfor i in range(5000): os.write(int(sys.argv[2]), b'x' * 9999)\nos._exit(0)", "returned more"),
        ("import os, sys\nos.write(int(sys.argv[2]), b'{\"score\": 1}\\n')\nos._exit(0)", "no answer"),
    ],
)
def test_an_attack_is_an_error_with_its_reason(tmp_path, source, reason):
    result = run(tmp_path, source, seconds=3.0 if "while True" in source else 60.0)
    assert result.error is not None
    assert reason in result.error


@pytest.mark.parametrize("leave_group", [False, True])
def test_no_process_of_a_submission_survives(tmp_path, leave_group):
    if leave_group and not has_namespaces():
        pytest.skip("without namespaces a process that leaves the group is not contained, as the module says")
    leave = "os.setsid(); " if leave_group else ""
    source = f"""
import os, time
def f():
    for _ in range(20):
        if os.fork() == 0:
            {leave}time.sleep(10000)
    return 20
"""
    assert run(tmp_path, source, seconds=60.0).value == 20
    name = str(tmp_path / "submission.py").encode()
    for _ in range(600):  # the kernel takes a moment to bury them
        if not any(name in command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline")):
            return
        time.sleep(0.1)
    pytest.fail("processes of the submission are still alive")


def command_line(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(not has_namespaces(), reason="the kernel makes no namespaces here, so the network stays open")
def test_there_is_no_network(tmp_path):
    server = socket.create_server(("127.0.0.1", 0))
    with server:
        port = server.getsockname()[1]
        source = f"import socket\ndef f():\n    socket.create_connection(('127.0.0.1', {port}), 5)\n    return 1"
        assert "unreachable" in run(tmp_path, source, seconds=60.0).error


def test_a_grader_that_a_submission_patches_is_not_the_one_that_judges(tmp_path):
    source = "import numpy as np\nnp.array_equal = lambda *a: True\ndef f():\n    return np.ones(2)"
    result = run(tmp_path, source)
    assert not np.array_equal(result.value, np.zeros(2))


def test_megabytes_on_the_standard_output_do_no_harm(tmp_path):
    assert run(tmp_path, "def f():\n    print('x' * (50 << 20))\n    return 7").value == 7
