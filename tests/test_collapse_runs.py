"""Runs of a study: what they leave, how they are started, and what happens when they fail or are killed."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agents import dapo, ppo
from agents.checkpoint import load_policy
from agents.diagnostics import sampled_behaviour
from agents.metrics import rollout_metrics
from agents.policy import CausalLMWithValueHead
from agents.rollout import Rollout
from agents.trainer import Trainer
from benchmarks.collapse import __main__ as command
from benchmarks.collapse import warm_up
from benchmarks.collapse.__main__ import CollapseConfig, alone_in, at_most_every, choose
from benchmarks.collapse.earlier import finished_in, take_over
from benchmarks.collapse.estimate import Estimate, clock, expected_seconds
from benchmarks.collapse.factors import FORMAT_WARMED
from benchmarks.collapse.folder import read_study, write_study
from benchmarks.collapse.launch import MODULE, Launcher, command_of
from benchmarks.collapse.progress import ProgressDisplay
from benchmarks.collapse.run import RESULT, TRANSCRIPTS, run_one
from benchmarks.collapse.schedule import progress_of, run_all
from benchmarks.collapse.study import Run, Study, config_of
from benchmarks.collapse.study_file import find, load, parse
from benchmarks.collapse.table import (
    FAILED,
    metrics_of,
    read_runs,
    read_table,
    run_rows,
    running_means,
    status_of,
    write_parquet,
    write_tables,
)
from benchmarks.collapse.trainer import make_trainer, using
from search_gym.errors import OptionError, UnknownNameError
from search_gym.viewer.run_folder import load_run

ROOT = Path(__file__).parents[1]
UPDATES = 2
SMALL = {
    "name": "small",
    "seeds": [1],
    "size": {"updates": UPDATES, "rollouts_per_update": 16},
    "evaluation": {"questions_per_kind": 4, "transcripts_per_kind": 2},
    "center": {"group_size": 4},
}


def small(*cells: dict[str, Any], algorithms: tuple[str, ...] = ("grpo",), **changes: Any) -> Study:
    entry = {"name": "g", "design": "cells", "algorithms": list(algorithms), "cells": list(cells or [{}])}
    return parse({**SMALL, "groups": [entry], **changes})


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if "time/" not in name} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study of one run, which has been made in this process."""
    folder = tmp_path_factory.mktemp("study")
    study = small(algorithms=("ppo",))
    write_study(folder, study)
    run_one(study.runs()[0], folder, study.evaluation)
    return study, folder


# What a run leaves


def test_a_run_leaves_its_result_its_metrics_and_transcripts(finished: tuple[Study, Path]) -> None:
    study, folder = finished
    (run,) = study.runs()
    result = json.loads((run.folder(folder) / RESULT).read_text())
    assert result["status"] == "finished"
    assert result["options"] == run.cell.options
    assert result["levels"] == run.cell.levels
    assert set(result["held_out"]) == {"all", "1-hop", "2-hop"}
    assert result["held_out"]["all"]["em"]["low"] <= result["held_out"]["all"]["em"]["mean"]
    assert result["held_out_common"] == result["held_out"]  # nothing of the environment varies
    assert result["cpu_seconds"] > 0
    metrics = metrics_of(run, folder)
    assert [row["update"] for row in metrics] == [1, 2]
    assert all(0 <= row["rollout/valid_structure"] <= 1 for row in metrics)
    transcripts = [json.loads(line) for line in (run.folder(folder) / TRANSCRIPTS).read_text().splitlines()]
    labels = [f"update {n}" for n in (0, 1, 2)]
    assert list(dict.fromkeys(row["label"] for row in transcripts)) == labels
    asked = [[row["question_id"] for row in transcripts if row["label"] == label] for label in labels]
    assert asked[0] == asked[1] == asked[2]
    assert len(set(asked[0])) == 4
    assert all("values" in row for row in transcripts)
    assert not list((run.folder(folder) / "states").iterdir())
    assert (run.folder(folder) / "checkpoint" / "config.json").is_file()


def test_a_finished_run_is_kept_and_one_of_other_options_is_not_overwritten(finished: tuple[Study, Path]) -> None:
    study, folder = finished
    (run,) = study.runs()
    file = run.folder(folder) / RESULT
    before = file.stat().st_mtime_ns
    assert run_one(run, folder, study.evaluation) == json.loads(file.read_text())
    assert file.stat().st_mtime_ns == before
    other = replace(run.cell, options={**run.cell.options, "clip_high": 0.5})
    with pytest.raises(OptionError, match=r"differ: \{'clip_high': \(0.2, 0.5\)\}"):
        run_one(Run(other, 1), folder, study.evaluation)


def test_looks_and_the_trainer_of_the_study_change_nothing(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, folder = finished
    (run,) = study.runs()
    plain = replace(config_of(run.cell, run.seed, folder), run_dir=tmp_path)
    assert isinstance(plain, ppo.PPOConfig)
    ppo.train(plain)
    ours = [{k: v for k, v in row.items() if k != "rollout/valid_structure"} for row in rows(run.folder(folder))]
    assert ours == rows(tmp_path)
    weights = "checkpoint/model.safetensors"
    assert (run.folder(folder) / weights).read_bytes() == (tmp_path / weights).read_bytes()


def test_what_a_trainer_without_an_information_mask_trains_on(tmp_path: Path) -> None:
    study = small({"information_mask": False})
    config = config_of(study.cells[0], 1, tmp_path)
    looked: list[int] = []
    faulty = make_trainer((0,), lambda update, policy: looked.append(update), train_on_documents=True)
    with faulty(config, title="GRPO", make_envs=ppo.make_envs) as run:
        next(iter(run.updates()))
        rollouts = run.collect()
        batch, right = run.collate(rollouts), Trainer.collate(run, rollouts)
        scored = run.score(batch, right.response_mask).logprobs
    assert looked == [0]
    written = right.response_mask & ~right.loss_mask
    assert written.any()
    assert torch.equal(batch.loss_mask, right.response_mask)
    assert torch.equal(batch.old_logprobs[right.loss_mask], right.old_logprobs[right.loss_mask])
    assert torch.equal(batch.old_logprobs[written], scored[written])
    assert (batch.old_logprobs[written] < 0).all()
    assert not batch.old_logprobs[~right.response_mask].any()
    assert torch.equal(batch.rewards, right.rewards)


def test_dapo_is_judged_by_all_that_it_sampled(tmp_path: Path) -> None:
    """It trains on groups alone whose episodes differ, and often finds none; its rows say how all of them did."""
    study = small({"max_rounds": 2}, algorithms=("dapo",))
    config = config_of(study.cells[0], 1, tmp_path)
    collected: list[Rollout] = []

    class Counting(make_trainer((), lambda update, policy: None)):  # type: ignore[misc]
        def collect(self) -> list[Rollout]:
            rollouts = super().collect()
            collected.extend(rollouts)
            return rollouts

    with using(Counting, dapo):
        dapo.train(config)
    found = [
        json.loads(line) for line in (tmp_path / "runs/dapo-max-rounds-2/seed-1/metrics.jsonl").read_text().splitlines()
    ]
    assert [row["update"] for row in found] == [1, 2]
    parts = [collected[:32], collected[32:]]
    assert any("loss/policy" not in row for row in found)  # the base model earns too little for every update
    for row, part in zip(found, parts, strict=True):
        assert {k: row[k] for k in rollout_metrics(part)} == pytest.approx(rollout_metrics(part))
        groups = [{r.reward for r in part[i : i + 4]} for i in range(0, len(part), 4)]
        assert row["rollout/zero_variance_groups"] == pytest.approx(np.mean([len(group) == 1 for group in groups]))


def test_the_trainer_of_an_algorithm_is_put_back() -> None:
    other = make_trainer((), lambda update, policy: None)
    with using(other, ppo):
        assert ppo.Trainer is other
    assert ppo.Trainer is Trainer
    with pytest.raises(ZeroDivisionError), using(other, ppo):
        _ = 1 // 0
    assert ppo.Trainer is Trainer


def test_warming_up_teaches_the_form_from_episodes_that_solve_nothing(tmp_path: Path) -> None:
    base, codec = load_policy("tiny")
    assert warm_up.make(tmp_path / "model", num_sampled=300) > 30
    assert warm_up.make(tmp_path / "model", num_sampled=300) == 0
    warmed, _ = load_policy(str(tmp_path / "model"))

    def valid(policy: CausalLMWithValueHead) -> float:
        return sampled_behaviour(policy.model, codec, 150)["valid_episodes"]

    assert valid(warmed) > valid(base) + 0.1


# Tables


def test_tables_come_back(finished: tuple[Study, Path]) -> None:
    study, folder = finished
    (run,) = study.runs()
    two = replace(study, cells=(*study.cells, replace(study.cells[0], name="other", levels=dict(run.cell.levels))))
    assert write_tables(two, folder) == 1
    done, pending = read_runs(folder)
    assert done["status"] == "finished"
    assert pending["status"] == "pending"
    assert done["factor.learning_rate"] == run.cell.levels["learning_rate"]
    assert done["updates"] == UPDATES
    assert {"held_out.all", "held_out.1-hop", "held_out_common.2-hop", "commit", "wall_seconds"} <= set(done)
    assert done["collapsed"] is False
    assert done["collapse_update"] is None
    em = [row["rollout/em"] for row in metrics_of(run, folder)]
    assert done["best_em"] == done["final_em"] == pytest.approx(np.mean(em))
    table = read_table(folder)
    assert len(table) == UPDATES
    for read, metrics in zip(table, metrics_of(run, folder), strict=True):
        assert {"cell": run.cell.name, "algorithm": "ppo", "seed": 1, "factor.value_mask": True}.items() <= read.items()
        numbers = {k: v for k, v in metrics.items() if k != "alarms" and v is not None}
        assert {k: read[k] for k in numbers} == pytest.approx(numbers, rel=1e-6)


def test_runs_are_taken_from_the_tables_of_an_earlier_study(finished: tuple[Study, Path], tmp_path: Path) -> None:
    """Tables that are made of what was taken are the same again; runs of other options are not taken."""
    study, folder = finished
    write_tables(study, folder)
    (run,) = study.runs()
    write_study(tmp_path / "again", study)
    assert take_over(folder, study, tmp_path / "again") == [run]
    assert write_tables(study, tmp_path / "again") == 1
    assert read_runs(tmp_path / "again") == read_runs(folder)
    assert read_table(tmp_path / "again") == read_table(folder)
    assert load_run(run.folder(tmp_path / "again")).scores[0].em
    assert take_over(folder, study, tmp_path / "again") == []

    larger = small(algorithms=("ppo",), size={"updates": 3, "rollouts_per_update": 16})
    assert take_over(folder, larger, tmp_path / "larger") == []
    other = replace(study, cells=tuple(replace(c, options={**c.options, "top_p": 0.9}) for c in study.cells))
    assert take_over(folder, other, tmp_path / "other") == []
    with pytest.raises(OptionError, match="expected a study"):
        take_over(tmp_path / "nothing", study, tmp_path)


def test_a_table_holds_null_where_there_is_nothing(tmp_path: Path) -> None:
    write_parquet(tmp_path / "table.parquet", [{"a": 1, "b": None}, {"a": 0.5, "c": "x"}, {"c": None}])
    assert read_table(tmp_path) == [{"a": 1.0}, {"a": 0.5, "c": "x"}, {}]
    for read in (read_table, read_runs):
        with pytest.raises(OptionError, match="no file"):
            read(tmp_path / "none")


def test_a_half_written_row_is_none(tmp_path: Path) -> None:
    study = small()
    (run,) = study.runs()
    assert metrics_of(run, tmp_path) == []
    run.folder(tmp_path).mkdir(parents=True)
    (run.folder(tmp_path) / "metrics.jsonl").write_text('{"update": 1}\n{"upda')
    assert metrics_of(run, tmp_path) == [{"update": 1}]
    assert progress_of(run, tmp_path, 4) == 0.25
    assert [row["status"] for row in run_rows(study, tmp_path)] == ["pending"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_running_means_are_those_of_the_loop(values: list[float]) -> None:
    means = running_means(values)
    assert len(means) == max(1, len(values) - 4)
    assert means[-1] == pytest.approx(np.mean(values[-5:]))
    assert max(means) <= max(values) + 1e-12


# Starting


@given(st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_no_name_becomes_a_word_or_a_command(name: str) -> None:
    run = Run(replace(small().cells[0], name=name), 1)
    folder = Path("a folder; $(touch x)")
    words = command_of(run, folder)
    assert Launcher().words(run, folder) == words
    assert words[-4:] == [MODULE, str(folder.absolute()), name, "1"]
    assert Launcher("srun -n 1 {command}").words(run, folder) == ["srun", "-n", "1", *words]
    *front, inner = Launcher("ssh host 'exec {command}'").words(run, folder)
    assert front == ["ssh", "host"]
    assert shlex.split(inner) == ["exec", *words]
    job = Launcher("sbatch --wait --job-name={name} -o {log} --wrap {command}").words(run, folder)
    assert job[2] == f"--job-name={name}-seed-1"
    assert job[4] == str(run.folder(folder).absolute() / "log.txt")


@pytest.mark.parametrize(
    "template", ["srun", "srun {command} {command}", "srun {comand}", "srun 'x {command}", "{command} {run}", "{"]
)
def test_a_launcher_that_cannot_work_is_refused(template: str) -> None:
    with pytest.raises(OptionError, match=r"as launcher|a launcher with"):
        Launcher(template)


def test_braces_of_a_launcher_are_doubled() -> None:
    words = Launcher("env A={{x}} {command}").words(small().runs()[0], Path("f"))
    assert words[:2] == ["env", "A={x}"]


def test_a_launcher_that_does_not_wait_or_fails_is_told_apart(tmp_path: Path) -> None:
    """Real processes: one ends at once without a result, one fails and says why."""
    study = small({}, {"clip_high": 0.3})
    true, echo = shutil.which("true"), shutil.which("sh")
    assert true
    assert echo
    outcome = run_all(study.runs(), tmp_path, jobs=2, launcher=Launcher(f"{true} {{command}}"), retries=0)
    assert [failure.run for failure in outcome.failures] == study.runs()
    assert all("a launcher has to wait" in failure.reason for failure in outcome.failures)
    failing = Launcher(f"{echo} -c 'echo out of memory; exit 3' {{command}}")
    outcome = run_all(study.runs()[:1], tmp_path, jobs=1, launcher=failing, retries=1)
    (failure,) = outcome.failures
    assert failure.reason.startswith("exit status 3: ")
    assert failure.reason.count("out of memory") == 2  # it was tried again
    saved = json.loads((study.runs()[0].folder(tmp_path) / FAILED).read_text())
    assert saved["exit_status"] == 3
    assert saved["tries"] == 2
    assert [row["status"] for row in run_rows(study, tmp_path)] == ["failed", "failed"]


def test_nothing_goes_on_after_an_interruption(tmp_path: Path) -> None:
    study = small()
    sleep = shutil.which("sleep")
    assert sleep
    pids = tmp_path / "pid"
    launcher = Launcher(f"sh -c 'echo $$ > {pids}; exec {sleep} 1000' {{command}}")

    class Interrupts(ProgressDisplay):
        def tick(self, active: Any) -> None:
            if pids.exists() and pids.read_text().strip():
                raise KeyboardInterrupt

    console = Console(file=io.StringIO())
    display = Interrupts(study.runs(), tmp_path, jobs=1, estimate=Estimate(study, tmp_path), console=console)
    with pytest.raises(KeyboardInterrupt), display:
        run_all(study.runs(), tmp_path, jobs=1, launcher=launcher, watcher=display)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.read_text()), 0)


# Showing


def test_times_are_estimated_and_then_learned(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, folder = finished
    (run,) = study.runs()
    assert Estimate(study, tmp_path).seconds(run.cell) == expected_seconds(run.cell)
    result = json.loads((run.folder(folder) / RESULT).read_text())
    learned = Estimate(study, folder)
    assert learned.seconds(run.cell) == result["wall_seconds"]
    unknown = replace(run.cell, name="unknown")
    assert learned.seconds(unknown) == pytest.approx(result["wall_seconds"])  # it costs what a run of its kind costs
    assert learned.left([run, run, run], {}, 2) == pytest.approx(1.5 * result["wall_seconds"])
    assert learned.left([run], {run.name: 0.25}, 2) == pytest.approx(0.75 * result["wall_seconds"])
    assert learned.left([], {}, 2) == 0
    assert clock(3725.4) == "1:02:05"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_happens_is_shown(is_terminal: bool, finished: tuple[Study, Path]) -> None:
    study, folder = finished
    (run,) = study.runs()
    out = io.StringIO()
    console = Console(file=out, force_terminal=is_terminal, width=150)
    display = ProgressDisplay([run, run], folder, jobs=1, estimate=Estimate(study, folder), console=console)
    with display:
        display.started(run)
        display.tick([run])
        display.retried(run, "exit status 1: [bold]out of luck")
        display.started(run)
        display.ended(run, finished=False)
    shown = out.getvalue()
    assert f"{run.name} failed and is tried again: exit status 1: [bold]out of luck" in shown
    assert f"1/2  FAILED  {run.name}" in shown
    assert ("about 0:00:0" in shown) or ("left" in shown)


def test_a_list_names_every_cell(tmp_path: Path) -> None:
    out = io.StringIO()
    config = CollapseConfig(full=True, list=True, run_dir=tmp_path / "none")
    command.run(config, Console(file=out, width=300))
    study = load(find("full"))
    assert all(f" {cell.name} " in out.getvalue() for cell in study.cells)
    assert f"{len(study.cells)} cells, {len(study.runs())} runs, 0 finished" in out.getvalue()
    assert not (tmp_path / "none").exists()


def test_a_list_counts_what_an_earlier_study_has(finished: tuple[Study, Path], tmp_path: Path) -> None:
    study, folder = finished
    write_tables(study, folder)
    out = io.StringIO()
    console = Console(file=out, width=300)
    console.print(command.table_of(study, tmp_path, 1, [run.name for run in finished_in(folder, study)]))
    assert "1 cells, 1 runs, 1 finished; about 0:00:00 left" in out.getvalue()


def test_commands_can_be_printed_for_an_array_of_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = CollapseConfig(quick=True, commands=True, run_dir=tmp_path, seeds=(2,), launcher="nice {command}")
    command.run(config)
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    runs = load(find("quick")).select([], [2]).runs()
    assert lines == [["nice", *command_of(run, tmp_path)] for run in runs]
    assert read_study(tmp_path) == load(find("quick"))


def test_tables_are_not_written_all_the_time() -> None:
    calls: list[int] = []
    often, seldom = (at_most_every(seconds, lambda: calls.append(1)) for seconds in (0.0, 1e9))
    for _ in range(3):
        often()
    assert len(calls) == 3
    for _ in range(3):
        seldom()
    assert len(calls) == 4


def test_options_that_exclude_each_other_are_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"\['quick', 'full'\]"):
        choose(CollapseConfig(quick=True, full=True))
    assert choose(CollapseConfig()).name == "default"
    assert choose(CollapseConfig(study=find("quick"))).name == "quick"
    with pytest.raises(OptionError, match="jobs >= 1"):
        command.run(CollapseConfig(quick=True, jobs=0, run_dir=tmp_path))
    with pytest.raises(UnknownNameError, match="did you mean 'rates'"):
        command.run(CollapseConfig(quick=True, groups=("rate",), run_dir=tmp_path))
    with alone_in(tmp_path), pytest.raises(OptionError, match="another process"), alone_in(tmp_path):
        pass


# The real command


def write_small(path: Path, cells: str, seeds: str = "[1]") -> None:
    path.write_text(
        f"""
        name = "small"
        seeds = {seeds}
        size = {{ updates = 4, rollouts_per_update = 16 }}
        evaluation = {{ questions_per_kind = 4, transcripts_per_kind = 1 }}
        center = {{ group_size = 4 }}
        [[groups]]
        name = "g"
        design = "cells"
        algorithms = ["grpo"]
        cells = {cells}
        """
    )


def start(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.collapse", *args],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(6_000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("what was waited for has not come")


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_and_ends_like_one_that_was_not(tmp_path: Path) -> None:
    write_small(tmp_path / "s.toml", "[{}]", "[1, 2]")
    args = ["--study", str(tmp_path / "s.toml"), "--jobs", "2"]
    alone = start(*args, "--run-dir", str(tmp_path / "alone"))
    text, _ = alone.communicate()
    assert alone.returncode == 0, text
    study, killed = read_study(tmp_path / "alone"), tmp_path / "killed"
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = start(*args, "--run-dir", str(killed))
        first = study.runs()[0].folder(killed)
        wait_for(lambda first=first: (first / "metrics.jsonl").exists() and rows(first))
        process.send_signal(number)
        text, _ = process.communicate()
        if number == signal.SIGTERM:
            assert process.returncode == 128 + signal.SIGINT, text
            assert "goes on where the runs were" in text
    again = start(*args, "--run-dir", str(killed))
    text, _ = again.communicate()
    assert again.returncode == 0, text
    assert "2 finished runs" in text
    for run in study.runs():
        assert rows(run.folder(killed)) == rows(run.folder(tmp_path / "alone"))
        results = [json.loads((run.folder(d) / RESULT).read_text()) for d in (killed, tmp_path / "alone")]
        assert results[0]["held_out"] == results[1]["held_out"]
        assert "benchmarks.collapse.run" in results[0]["command"]
    assert len(read_table(killed)) == 2 * 4
    assert [row["status"] for row in read_runs(killed)] == ["finished"] * 2


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_stops_no_other(tmp_path: Path) -> None:
    write_small(tmp_path / "s.toml", f'[{{ base = "{FORMAT_WARMED}" }}, {{}}]')
    folder = tmp_path / "runs"
    broken = folder / "models" / FORMAT_WARMED
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    args = ["--study", str(tmp_path / "s.toml"), "--run-dir", str(folder), "--jobs", "1"]
    process = start(*args, "--launcher", "sh -c 'exec {command}'")
    text, _ = process.communicate()
    assert process.returncode == 1
    bad, good = read_study(folder).runs()
    assert [status_of(run, folder) for run in (bad, good)] == ["failed", "finished"]
    assert f"{bad.name} failed and is tried again" in text
    assert f"FAILED {bad.name}: exit status 1" in text
    assert "1 that failed" in text
    assert str(broken) in text  # the reason
    shutil.rmtree(broken)
    mended = start(*args)
    text, _ = mended.communicate()
    assert mended.returncode == 0, text
    assert not (bad.folder(folder) / FAILED).exists()
    assert [row["status"] for row in read_runs(folder)] == ["finished", "finished"]
