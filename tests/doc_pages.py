"""Pages whose code is run: the blocks of a Markdown page, in order, in an empty folder, and what they print compared.

A ``python`` block runs in the namespace of its page, a ``bash`` block in a shell of its own; one with a title is saved
under that name instead. A ``text`` block after them is what they print: a line ``...`` stands for any lines, ``…`` for
anything in a line, and any white space for any other. A comment ``<!-- example: DIRECTIVE -->`` above a block says

* ``not run: REASON``: it needs hardware, a network or a file that tests do not have
* ``slow``: only run when everything is
* ``small``: the same, and what trains gets the options ``SMALL``
* ``output not shown``, alone or after ``slow``, as in ``slow; output not shown``: the page leaves out what it prints
* ``background until "TEXT"``: it goes on until the page ends, and the page once it has printed TEXT
* ``numbers within X``: numbers of a ``text`` block may be off by X

Port 8000 of a page is a free one when it is run.

    python -m tests.doc_pages docs/tutorials/retriever.md           # writes into the page what its code prints
    python -m tests.doc_pages --quick docs/tutorials/retriever.md   # without the slow blocks
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?:<!-- example: (?P<directive>[^\n]*?) -->\n\n?)?^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^ *```$",
    flags=re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?![\w])")
PORT = "8000"
SMALL = "--updates 2 --rollouts-per-update 16 --minibatch-size 4"
READY_SECONDS = 300.0


@dataclass(frozen=True)
class Block:
    """A fenced block; ``start`` and ``stop`` are where its text stands in the page."""

    language: str
    title: str | None
    text: str
    directive: str
    start: int
    stop: int

    @property
    def reason(self) -> str | None:
        """Why the block is not run, if it is not."""
        return self.directive.removeprefix("not run: ") if self.directive.startswith("not run: ") else None

    @property
    def is_slow(self) -> bool:
        """Whether it is only run when everything is."""
        return self.directive.partition(";")[0] in ("slow", "small")

    @property
    def is_shown(self) -> bool:
        """Whether the page shows what it prints."""
        return self.directive.rpartition("; ")[2] != "output not shown"

    @property
    def tolerance(self) -> float:
        """How far a printed number may be from one of the page."""
        return float(self.directive.split()[-1]) if self.directive.startswith("numbers within") else 0.0


def blocks(page: str) -> list[Block]:
    """The fenced blocks of ``page``, in order."""
    found = []
    for match in BLOCK.finditer(page):
        language, _, rest = match["info"].strip().partition(" ")
        title = re.search(r'title="([^"]+)"', rest)
        text = re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
        directive = match["directive"] or ""
        found.append(Block(language, title and title[1], text, directive, match.start("text"), match.end("text")))
    return found


def difference(expected: Block, printed: str) -> str | None:
    """What is different between what a page shows and what its code has printed; None if nothing is."""
    lines = [
        r"(?:.*\n)*?" if line == "..." else ".*".join(map(_escape(expected), line.rstrip().split("…"))) + r"[ \t]*\n"
        for line in expected.text.splitlines()
    ]
    printed = printed.rstrip("\n") + "\n"
    match = re.fullmatch("".join(lines), printed)
    shown = [n for line in expected.text.splitlines() if line != "..." for n in NUMBER.findall(line)]
    if match is not None and all(
        abs(float(a) - float(b)) <= expected.tolerance + 1e-9
        for a, b in zip(shown if expected.tolerance else [], match.groups(), strict=True)
    ):
        return None
    return f"expected\n{expected.text}\ngot\n{printed}"


def _escape(expected: Block) -> Callable[[str], str]:
    number = r"([-+]?\d+(?:\.\d+)?)"

    def escape(text: str) -> str:
        parts = NUMBER.split(text) if expected.tolerance else [text]
        return number.join(r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in parts)

    return escape


@dataclass
class Player:
    """Runs blocks in ``folder``; what they print collects in ``printed`` until it is taken."""

    folder: Path
    port: str
    name: str
    namespace: dict[str, Any] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    printed: str = ""

    def play(self, block: Block) -> None:
        """Run, start or save ``block``."""
        text = block.text.replace(PORT, self.port)
        if block.directive == "small":
            text = "".join(f"{line} {SMALL} > small.log\n" for line in text.splitlines())
        if block.title is not None:
            Path(block.title).write_text(text, encoding="utf-8")
        elif block.language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(text, f"{self.name}: {text.splitlines()[0]}", "exec"), self.namespace)
            self.printed += output.getvalue()
        elif block.directive.startswith("background"):
            self.start(text, block.directive.split('"')[1])
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text], env=self.environment(), capture_output=True, check=False
            )
            if done.returncode:
                raise AssertionError(f"exit status {done.returncode} of\n{text}\n{done.stderr.decode()}")
            self.printed += done.stdout.decode()

    def start(self, text: str, ready: str) -> None:
        """Start a command and wait until it has printed ``ready``."""
        log = Path(f"background-{len(self.processes)}.log")
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec env {text}"],
                env=self.environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        end = time.monotonic() + READY_SECONDS
        while ready not in log.read_text(encoding="utf-8"):
            if process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"expected {ready!r} of\n{text}\ngot\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.05)

    def environment(self) -> dict[str, str]:
        """The shell's variables: this interpreter and this repository come first, and one thread is enough."""
        return {
            **os.environ,
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
            "PYTHONPATH": os.pathsep.join((str(self.folder), str(ROOT))),
            "OMP_NUM_THREADS": "1",
        }

    def take(self) -> str:
        """What has been printed since the last call."""
        printed, self.printed = self.printed.replace(self.port, PORT), ""
        return printed

    def close(self) -> None:
        """End what runs in the background."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


@contextlib.contextmanager
def player(folder: Path, name: str) -> Iterator[Player]:
    """A player whose folder is the working directory and the first place to import from."""
    before, modules = Path.cwd(), set(sys.modules)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found = Player(folder, str(probe.getsockname()[1]), name, {"__name__": "page"})
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield found
    finally:
        found.close()
        os.chdir(before)
        sys.path.remove(str(folder))
        for module in set(sys.modules) - modules:
            file = getattr(sys.modules[module], "__file__", None)
            if file is not None and Path(file).is_relative_to(folder):
                del sys.modules[module]


def outputs(page: Path, folder: Path, *, slow: bool) -> Iterator[tuple[Block, str]]:
    """Each ``text`` block of ``page`` with what the code before it has printed."""
    with player(folder, page.name) as playing:
        following = itertools.pairwise([*blocks(page.read_text(encoding="utf-8")), None])
        for block, after in following:
            if block is None or block.language not in ("python", "bash") or block.reason is not None:
                continue
            if block.is_slow and not slow:
                continue
            before = playing.printed
            playing.play(block)
            if not block.is_shown:
                playing.printed = before
            if after is not None and after.language == "text":
                yield after, playing.take()
        if rest := playing.take():
            raise AssertionError(f"expected nothing more to be printed by {page.name}, got\n{rest}")


def check(page: Path, folder: Path, *, slow: bool) -> None:
    """Run the code of ``page``.

    Raises:
        AssertionError: it prints something else than the page shows.
    """
    for block, printed in outputs(page, folder, slow=slow):
        problem = difference(block, printed)
        if problem is not None:
            raise AssertionError(f"{page.name}: {problem}")


def write(page: Path, *, slow: bool) -> None:
    """Put what the code of ``page`` prints into its ``text`` blocks that show something else."""
    with tempfile.TemporaryDirectory() as folder:
        found = list(outputs(page, Path(folder), slow=slow))
    text = page.read_text(encoding="utf-8")
    for block, printed in reversed(found):
        if difference(block, printed) is not None:
            text = text[: block.start] + printed.rstrip("\n") + "\n" + text[block.stop :]
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if argument != "--quick":
            write(Path(argument).resolve(), slow="--quick" not in sys.argv)
