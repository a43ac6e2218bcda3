"""Submissions that attack the sandbox: none forges a value, none outlives its limits, none touches this process."""

import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from search_gym.exercises.sandbox import (
    CallResult,
    Sandbox,
    SandboxLimits,
    call_functions,
    has_landlock,
    has_namespaces,
)

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
        error = run(tmp_path, source, seconds=60.0).error
        assert "unreachable" in error or "Permission denied" in error


@pytest.mark.skipif(not has_landlock(), reason="the kernel has no Landlock, so files stay writable")
@pytest.mark.parametrize(
    "attack",
    [
        "open(path, 'a').write('x')",
        "os.truncate(path, 0)",
        "os.remove(path)",
        "os.rename(path, path + '2')",
        "os.mkdir(path + '3')",
        "os.symlink('/', path + '4')",
        "open(path + '5', 'w')",
        "subprocess.run(['sh', '-c', 'echo x > ' + path], check=True)",
    ],
)
def test_files_outside_of_the_folder_cannot_be_written(tmp_path, attack):
    target = tmp_path / "grader.py"
    target.write_text("as it was")
    source = f"""
import os, subprocess
def f(path):
    open("mine", "w").write("x")
    os.remove("mine")
    {attack}
"""
    error = run(tmp_path, source, str(target), seconds=60.0).error
    assert "PermissionError" in error or "CalledProcessError" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grader.py", "submission.py"]
    assert target.read_text() == "as it was"


def test_a_process_serves_many_requests_and_is_replaced_when_it_fails(tmp_path):
    path = tmp_path / "submission.py"
    path.write_text("import os\nn = 0\ndef f(x):\n    global n\n    n += 1\n    if x < 0: os._exit(1)\n    return n")
    with Sandbox(path, SandboxLimits(seconds=60.0)) as sandbox:
        calls = [[("f", (1,), {}), ("f", (1,), {})], [("f", (1,), {})], [("f", (-1,), {})], [("f", (1,), {})]]
        results = [[result.value for result in sandbox.call(some)] for some in calls]
        assert results == [[1, 2], [3], [None], [1]]
        assert sandbox.call([]) == []


def test_a_large_request_to_a_process_that_does_not_read_ends_in_time(tmp_path):
    path = tmp_path / "submission.py"
    path.write_text("import time\ntime.sleep(1000)")
    result = call_functions(path, [("f", (np.zeros(1 << 20),), {})], SandboxLimits(seconds=2.0))[0]
    assert "took more than 2 s" in result.error


@pytest.mark.parametrize("module", ["search_gym", "search_gym.exercises.material.gae.checks", "agents.losses"])
def test_the_solutions_in_this_package_are_no_work_of_ones_own(tmp_path, module):
    assert "expected your own code" in run(tmp_path, f"import {module}\ndef f():\n    return 1").error


def test_an_error_names_the_line(tmp_path):
    assert "(line 2: return 1 / 0)" in run(tmp_path, "def f():\n    return 1 / 0").error


def test_a_grader_that_a_submission_patches_is_not_the_one_that_judges(tmp_path):
    source = "import numpy as np\nnp.array_equal = lambda *a: True\ndef f():\n    return np.ones(2)"
    result = run(tmp_path, source)
    assert not np.array_equal(result.value, np.zeros(2))


def test_megabytes_on_the_standard_output_do_no_harm(tmp_path):
    assert run(tmp_path, "def f():\n    print('x' * (50 << 20))\n    return 7").value == 7
