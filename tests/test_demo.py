"""The demo from end to end at a small size, and its parts."""

import json
import multiprocessing
import operator
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from test_evaluate import rollout

from agents import demo
from agents.evaluate import Estimate, Evaluation
from agents.ppo import PPOConfig
from agents.tasks import EnvConfig
from search_gym import Question, tinywiki
from search_gym.errors import OptionError, SearchGymError

SMALL = PPOConfig(updates=2, rollouts_per_update=8, minibatch_size=4)


def run(run_dir, monkeypatch):
    monkeypatch.setattr(demo, "NUM_ENVS", 8)
    with (run_dir.parent / f"{run_dir.name}.txt").open("w+") as file:
        summary = demo.main(
            replace(SMALL, run_dir=run_dir), questions_per_kind=6, console=Console(file=file, width=100)
        )
        file.seek(0)
        return summary, file.read()


def without_times(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def test_the_demo_leaves_everything_that_it_promises(tmp_path, monkeypatch):
    summary, shown = run(tmp_path / "demo", monkeypatch)
    folder = tmp_path / "demo"
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "metrics.jsonl", "summary.json", "transcripts.jsonl", "checkpoint", "states", "curves.png",
        "curves.svg", "report.html",
        "baselines", "baselines.log", "training_transcripts.jsonl",
    }  # fmt: skip
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["num_questions"] == 12
    assert summary["seed"] == SMALL.seed
    assert summary["train_seconds"] > 0
    for scores in (summary, summary["intervals"]):
        for em in (scores["em_before"], scores["em_after"], *scores["baselines"].values()):
            assert list(em) == ["1-hop", "2-hop"]
    assert list(summary["baselines"]) == ["no-search", "static-rag", "static-rag-max", "single-search", "oracle"]
    assert summary["em_after"]["2-hop"] == summary["metrics"]["after"]["2-hop"]["em"]["mean"]
    # A program that searches once for each hop is right, one that searches once cannot answer a question of two hops.
    assert summary["baselines"]["oracle"] == {"1-hop": 1.0, "2-hop": 1.0}
    assert summary["baselines"]["single-search"]["2-hop"] < 0.5
    assert summary["metrics"]["no-search"]["all"]["searches"]["mean"] == 0.0
    assert summary["metrics"]["before"]["all"]["searches"]["mean"] > 0.0

    labels = ["before", *demo.TRAINED, "after"]
    rows = [json.loads(line) for line in (folder / "transcripts.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [label for label in labels for _ in range(demo.NUM_TRANSCRIPTS)]
    for start in range(demo.NUM_TRANSCRIPTS):
        assert len({row["question_id"] for row in rows[start :: demo.NUM_TRANSCRIPTS]}) == 1
    for name in ("", *(f"baselines/{name}" for name in demo.TRAINED)):
        assert len((folder / name / "metrics.jsonl").read_text().splitlines()) == SMALL.updates
        assert (folder / name / "checkpoint/model.safetensors").exists()
    for name, label in demo.LABELS.items():
        assert (label in shown) == (name != demo.BUILT_IN)
    assert shown.count("prompt sampled retrieved") == 2


def test_functions_of_the_users_are_compared_with_the_built_in_ones(tmp_path, monkeypatch):
    mistake = Path(__file__).parent / "exercises/mistakes/tags/retrieved_tokens_too.py"
    monkeypatch.setattr(sys.modules[__name__], "SMALL", replace(SMALL, use=(f"{mistake}:loss_mask",)))
    summary, shown = run(tmp_path / "demo", monkeypatch)
    assert summary["used"] == list(SMALL.use)
    assert list(summary["baselines"]) == ["built-in", "single-search", "oracle"]
    assert "Using loss_mask of" in shown
    assert demo.LABELS["built-in"] in shown
    assert (tmp_path / "demo/used" / mistake.name).read_bytes() == mistake.read_bytes()
    ours, theirs = (without_times(tmp_path / "demo" / name / "metrics.jsonl") for name in ("", "baselines/built-in"))
    assert ours[0]["rollout/reward"] == theirs[0]["rollout/reward"]
    assert abs(ours[0]["loss/entropy"] - theirs[0]["loss/entropy"]) > 0.1, "documents are other text"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_demo(tmp_path, monkeypatch):
    one, _ = run(tmp_path / "one", monkeypatch)
    two, _ = run(tmp_path / "two", monkeypatch)
    for name in ("em_before", "em_after", "baselines", "intervals", "metrics"):
        assert one[name] == two[name]
    for name in ("metrics.jsonl", "baselines/static-rag/metrics.jsonl", "transcripts.jsonl"):
        assert without_times(tmp_path / "one" / name) == without_times(tmp_path / "two" / name)


def test_other_questions_are_refused(tmp_path):
    config = PPOConfig(env=EnvConfig(questions="jsonl:q.jsonl"), run_dir=tmp_path / "demo")
    with pytest.raises(OptionError, match="expected the questions 'tinywiki'"):
        demo.main(config)
    assert not (tmp_path / "demo").exists()


def test_questions_are_held_out_and_balanced():
    config = EnvConfig(kinds=("1-hop", "2-hop", "2-hop"))
    envs, index = demo.held_out(config, tinywiki.codec(), demo.make_envs, 10)
    chosen = [envs.task.questions[i] for i in index]
    assert [sum(q.metadata["kind"] == kind for q in chosen) for kind in ("1-hop", "2-hop")] == [10, 10]
    assert all(q.question_id.startswith("tinywiki-test-") for q in chosen)


def test_an_error_in_the_second_process_is_an_error_here(tmp_path, capfd):
    with (
        pytest.raises(SearchGymError, match="exit status 1"),
        demo.in_background(operator.truediv, 1, 0, log=tmp_path / "log"),
    ):
        pass
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_an_interruption_ends_the_second_process(tmp_path):
    with pytest.raises(KeyboardInterrupt), demo.in_background(time.sleep, 600, log=tmp_path / "log"):
        raise KeyboardInterrupt
    assert multiprocessing.active_children() == []


def episode(hops, reward):
    question = Question("q", "q?", ("x",), {"kind": f"{hops}-hop", "hops": hops})
    return replace(rollout("x", reward=reward), question=question)


def test_the_transcripts_shown_are_of_a_question_that_was_learned():
    rewards = [(1, 1.0, 1.0), (1, 0.0, 1.0), (2, 0.0, 1.0), (3, 1.0, 1.0), (3, 1.0, 0.0)]
    before = Evaluation(tuple(episode(hops, old) for hops, old, _ in rewards), {})
    after = Evaluation(tuple(episode(hops, new) for hops, _, new in rewards), {})
    assert demo.telling_pair(before, after) == (before.rollouts[2], after.rollouts[2])
    # Nothing was learned: a question of most hops.
    assert demo.telling_pair(before, before) == (before.rollouts[3], before.rollouts[3])


def test_estimates_come_back_from_a_summary(tmp_path):
    estimates = {"all": {"em": Estimate(0.5, 0.25, 0.75)}, "1-hop": {"em": Estimate(1.0, 1.0, 1.0)}}
    demo.write_json(tmp_path / "summary.json", {"metrics": demo.to_plain(estimates)})
    assert demo.read_estimates(tmp_path) == estimates
    assert demo.em_by_kind(estimates, lambda em: [em.low, em.high]) == {"1-hop": [1.0, 1.0]}
