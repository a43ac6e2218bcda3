"""What a study is: cells, each an algorithm with levels of factors, and the configuration of each run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from agents import algorithms
from agents.config import ComputeConfig, SaveConfig, TrainConfig, pick
from benchmarks.collapse.factors import FORMAT_WARMED, TRAIN_ON_DOCUMENTS, Level, Levels, Options, Size
from search_gym.errors import OptionError

SAVE_EVERY = 10
MICRO_BATCH_TOKENS = 1_500
"""Rounds are so small that more than a third of a whole mini-batch would be padding."""

Data = TypeVar("Data")


@dataclass(frozen=True)
class Evaluation:
    """What is asked of a policy after training, in worlds that training never sees."""

    questions_per_kind: int = 100
    """Held-out questions of each kind, answered greedily."""
    transcripts_per_kind: int = 8
    """Of these, how many are kept as transcripts, before, halfway through and after training."""


@dataclass(frozen=True)
class Group:
    """Cells that answer one question of the study."""

    name: str
    question: str
    """What the cells are for."""
    fairness: str
    """What is equal between them."""
    design: str
    algorithms: tuple[str, ...]
    factors: Mapping[str, tuple[Level, ...]]
    fixed: Levels
    """Levels that all cells of the group have."""
    generators: Mapping[str, str]
    cells: tuple[Levels, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """One combination of an algorithm and levels, run with several seeds.

    ``levels`` names every factor that applies to the algorithm, ``options`` are the fields of its configuration.
    """

    name: str
    label: str
    algorithm: str
    groups: tuple[str, ...]
    """Those that it serves, the most important one first."""
    levels: Levels
    options: Options
    seeds: tuple[int, ...]


class Run(NamedTuple):
    """One training run of a study."""

    cell: Cell
    seed: int

    @property
    def name(self) -> str:
        return f"{self.cell.name}/seed-{self.seed}"

    def folder(self, study_folder: Path) -> Path:
        """Where the run's files are."""
        return study_folder / "runs" / self.cell.name / f"seed-{self.seed}"


@dataclass(frozen=True)
class Study:
    """Cells, and how much each run gets. ``cells`` stand in the order of their groups in the file."""

    name: str
    title: str
    size: Size
    evaluation: Evaluation
    center: Levels
    groups: tuple[Group, ...]
    cells: tuple[Cell, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed that a cell has."""
        return tuple(sorted({seed for cell in self.cells for seed in cell.seeds}))

    def runs(self) -> list[Run]:
        """All runs, the n-th seeds of all cells before the next ones, so that a study that is cut short is whole."""
        most = max(len(cell.seeds) for cell in self.cells)
        return [Run(cell, cell.seeds[i]) for i in range(most) for cell in self.cells if i < len(cell.seeds)]

    def cell(self, name: str) -> Cell:
        """Raises UnknownNameError: there is no such cell."""
        cells = {cell.name: cell for cell in self.cells}
        return cells[pick("cell", name, tuple(cells))]

    def select(self, groups: Sequence[str], seeds: Sequence[int]) -> Study:
        """The cells of some ``groups``, and some ``seeds`` of them; all, where none is named.

        Raises:
            UnknownNameError, OptionError: there is no such group, or nothing is left.
        """
        known = tuple(group.name for group in self.groups)
        wanted = {pick("group", name, known) for name in groups} or set(known)
        cells = []
        for cell in self.cells:
            kept = tuple(seed for seed in cell.seeds if not seeds or seed in seeds)
            if wanted & set(cell.groups) and kept:
                cells.append(replace(cell, seeds=kept))
        if not cells:
            raise OptionError(f"expected seeds among {list(self.seeds)}, got {list(seeds)}; do: name one of them")
        return replace(self, cells=tuple(cells))


def config_of(cell: Cell, seed: int, study_folder: Path) -> TrainConfig:
    """The configuration of a run: the algorithm's preset "matched" with the cell's options.

    Raises:
        OptionError, UnknownNameError: an option that the algorithm does not have.
    """
    presets = algorithms.load(cell.algorithm).PRESETS
    config: TrainConfig = presets[pick("preset", "matched", list(presets))]
    options = {path: value for path, value in cell.options.items() if path != TRAIN_ON_DOCUMENTS}
    if options.get("model") == FORMAT_WARMED:
        options["model"] = str(study_folder / "models" / FORMAT_WARMED)
    for path, value in options.items():
        config = _with_option(config, path, value)
    config = replace(
        config,
        seed=seed,
        run_dir=Run(cell, seed).folder(study_folder),
        compute=ComputeConfig(device="cpu", micro_batch_tokens=MICRO_BATCH_TOKENS),
        save=SaveConfig(resume=True, save_every=SAVE_EVERY, transcripts=0),  # a run keeps held-out ones
    )
    config.check()
    return config


def _with_option(config: Data, path: str, value: Any) -> Data:
    """``config`` with the field at the dotted ``path`` replaced."""
    first, _, rest = path.partition(".")
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    pick("option", first, names)
    return replace(config, **{first: _with_option(getattr(config, first), rest, value) if rest else value})  # type: ignore[type-var]
