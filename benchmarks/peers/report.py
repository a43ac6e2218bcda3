"""The tables and the plot of `benchmarks.peers`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.worker import SERVERS
from search_gym.plugins import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

START, STOP = "<!-- measured: begin -->", "<!-- measured: end -->"
_CHUNKS = {True: "no", False: "yes", None: "an action has no parts"}


def table(result: Mapping[str, Any]) -> str:
    """Two tables in Markdown: an episode, and a step of many."""
    lines = [
        "| | CPU µs an episode (reset, search, answer) | episodes a CPU-second | cutting a turn changes the episode |",
        "|---|---|---|---|",
    ]
    for name, found in result["contestants"].items():
        cost = found["episode_microseconds"]
        rate = f"{1e6 / cost['median']:,.0f}"
        lines.append(f"| {name} | {_interval(cost, 1)} | {rate} | {_CHUNKS[found['same_in_chunks']]} |")
    lines += [
        "",
        f"| ms a step of 16 searches | {' | '.join(SERVERS)} |",
        f"|---|{'---|' * len(SERVERS)}",
    ]
    for name, found in result["contestants"].items():
        for vector, by_server in found["vector_milliseconds"].items():
            cells = " | ".join(_interval(by_server[server], 1) for server in SERVERS)
            lines.append(f"| {name}: {vector} | {cells} |")
    return "\n".join(lines)


def _interval(found: Mapping[str, float], digits: int) -> str:
    return f"{found['median']:,.{digits}f} [{found['low']:,.{digits}f}, {found['high']:,.{digits}f}]"


def write_page(page: Path, result: Mapping[str, Any]) -> None:
    """Put the tables between the marks of ``page``."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(STOP)
    machine = result["machine"]
    where = (
        f"{machine['system']}, {machine['architecture']}, {machine['cpus']} cores, Python {machine['python']}; "
        f"{result['rounds']} rounds of {result['episodes_per_round']} episodes; medians with 95 % intervals. "
        f"Made by `{result['command']}`."
    )
    page.write_text(f"{before}{START}\n{table(result)}\n\n{where}\n{STOP}{after}", encoding="utf-8")


def draw(result: Mapping[str, Any]) -> Figure:
    """Costs of an episode, and times of a step of 16 searches, on logarithmic axes."""
    figure = require("matplotlib.figure", extra="agents").Figure(figsize=(11.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    contestants = result["contestants"]
    names = list(contestants)[::-1]
    costs = [contestants[name]["episode_microseconds"] for name in names]
    _bars(left, names, costs, "tab:blue", 0.0, 0.7)
    left.set(xscale="log", xlabel="CPU µs an episode", yticks=range(len(names)), yticklabels=names)
    rows = [
        (f"{name}: {vector}", by_server)
        for name, found in contestants.items()
        for vector, by_server in found["vector_milliseconds"].items()
    ][::-1]
    for number, (server, color) in enumerate(zip(SERVERS, ("tab:blue", "tab:orange", "tab:green"), strict=True)):
        found = [by_server[server] for _, by_server in rows]
        _bars(right, [name for name, _ in rows], found, color, 0.25 * (1 - number), 0.25, label=server)
    right.set(xscale="log", xlabel="ms a step of 16 searches", yticks=range(len(rows)))
    right.set_yticklabels([name for name, _ in rows], fontsize="small")
    if rows:
        figure.legend(
            title="a server that takes 10 ms", loc="outside lower right", ncols=len(SERVERS), fontsize="small"
        )
    return figure


def _bars(
    axes: Any, names: list[str], found: list[dict[str, float]], color: str, shift: float, height: float, **more: Any
) -> None:
    medians = [row["median"] for row in found]
    errors = [[row["median"] - row["low"] for row in found], [row["high"] - row["median"] for row in found]]
    positions = [number + shift for number in range(len(names))]
    axes.barh(positions, medians, height, xerr=errors, color=color, **more)
