"""An environment for each library of ``peers.toml``, and the adapters' tests run in them.

python -m benchmarks.peers.venvs                  # make those that are missing
python -m benchmarks.peers.venvs --tests          # and run the adapters' tests: what `make test-adapters` does
python -m benchmarks.peers.venvs --tests --names openenv skyrl
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-peers"
COMMON = ("numpy>=1.26", "gymnasium>=1.1", "bm25s>=0.2.6", "pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100")
"""What search_gym and its tests need in every environment."""


@dataclass(frozen=True)
class VenvsConfig:
    """Which environments, and where."""

    names: tuple[str, ...] = ()
    """Tables of peers.toml; by default all of them, with --tests those that have a test."""
    folder: Path = FOLDER
    """Where the environments are."""
    tests: bool = False
    """Run the tests in them."""


def peers() -> dict[str, dict[str, Any]]:
    """The tables of ``peers.toml``."""
    return tomllib.loads((ROOT / "peers.toml").read_text(encoding="utf-8"))


def python_of(name: str, folder: Path = FOLDER) -> Path:
    """The interpreter of an environment."""
    return folder / name / "bin" / "python"


def make(name: str, folder: Path = FOLDER) -> Path:
    """The interpreter of the environment of ``name``, which is made, or brought up to date, if it has to be."""
    peer, python, stamp = peers()[name], python_of(name, folder), folder / name / "installed.json"
    wanted = json.dumps([COMMON, peer["packages"], peer.get("alone", [])])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, *constraints, *COMMON, *peer["packages"]], check=True)
    if peer.get("alone"):
        subprocess.run([*pip, "--no-deps", *peer["alone"]], check=True)
    stamp.write_text(wanted, encoding="utf-8")
    return python


def run_test(name: str, folder: Path) -> bool:
    """Run the test of ``name`` in its environment; False if it failed or ran nothing."""
    path = ROOT / "tests" / peers()[name]["test"]
    # The project's own options want plug-ins that the environments do not have, and its libraries warn.
    options = ["-o", "addopts=", "-o", "filterwarnings=", "-p", "no:cacheprovider", "-q", "-rs"]
    return not subprocess.run([str(python_of(name, folder)), "-m", "pytest", *options, str(path)], cwd=ROOT).returncode


def main(config: VenvsConfig) -> int:
    """Make the environments, run the tests; the number of environments that could not be made or whose test failed."""
    known = [name for name, peer in peers().items() if "test" in peer or not config.tests]
    failed = []
    for name in config.names or known:
        print(f"--- {name}", flush=True)
        try:
            make(name, config.folder)
        except subprocess.CalledProcessError as error:
            print(f"could not be installed: {error}", flush=True)
            failed.append(name)
            continue
        if config.tests and not run_test(name, config.folder):
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all is well")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(VenvsConfig, description=__doc__)))
