"""The comparison with TRL and with the first engine runs, judges its figures truly, and compares like with like."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from agents.models import load_model
from agents.policy import evaluate_tokens
from agents.runlog import to_jsonable
from agents.tasks import EnvConfig, QuestionOrder, make_envs
from benchmarks import paced_workers, peer_training
from benchmarks.peer_training import FIRST, ONE_BY_ONE, OURS, TRL, PeerConfig

ENGINE = "agents.generation:CachedGenerator"
TINY = PeerConfig(
    rounds=2,
    warmup=0,
    episodes=8,
    group_size=4,
    minibatch_size=4,
    engines=(ENGINE,),
    one_by_one_rounds=1,
    first_issue=False,
)
needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed: pip install -e '.[trl]'")


def run(config: PeerConfig) -> dict[str, Any]:
    peer_training.main(config, ["--rounds", "2"])
    return json.loads(config.output.read_text(encoding="utf-8"))


def test_it_measures_what_is_there_and_says_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    output = tmp_path / "results" / "peer.json"
    result = run(replace(TINY, trl=True, trl_python=python, first_issue=True, output=output))
    messages = capsys.readouterr().err
    assert f"TRL is left out: {python} does not have it" in messages
    assert result["command"] == "python -m benchmarks.peer_training --rounds 2"
    assert result["updates"].keys() == {OURS}
    assert result["machine"]["trl"] is None
    assert 0 < result["updates"][OURS]["cpu_seconds"]["lowest"] <= result["updates"][OURS]["cpu_seconds"]["highest"]
    assert result["collect"][ENGINE]["episode"]["sampled_tokens"] > 3
    assert result["goals"].keys() == peer_training.GOALS.keys()
    assert result["goals"]["updates over TRL"] == {"goal": 5.0, "measured": None, "met": None}
    if paced_workers.unpack(peer_training.FIRST_ISSUE, tmp_path / "tree"):
        assert result["ratios"]["collect over first issue"]["rounds"] == TINY.rounds
        first, ours = (result["collect"][name] for name in (FIRST, ENGINE))
        assert first["episode"] == ours["episode"] or ours["same_episodes"] < 1
    else:
        assert "the engine of the first issue is left out" in messages
        assert result["ratios"] == {}


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    program = "import sys; print('{}', flush=True); sys.stdin.readline(); raise ValueError('too short')"
    with paced_workers.Worker("it", [sys.executable, "-c", program], {}, tmp_path / "log.txt") as worker:
        assert worker.wait() == {}
        with pytest.raises(RuntimeError, match=r"(?s)report of 'it', got the end of its process:.*too short"):
            worker.work({"seed": 1})


def test_a_commit_that_is_not_there_cannot_be_unpacked(tmp_path: Path) -> None:
    assert not paced_workers.unpack("0" * 40, tmp_path / "tree")
    assert not (tmp_path / "tree").exists()


def test_contestants_with_other_questions_or_code_are_not_compared(tmp_path: Path) -> None:
    facts = {"trees": [str(tmp_path)], "questions": "a", "vocab_size": 9}
    paced_workers.check_facts("it", facts, facts, tmp_path)
    with pytest.raises(RuntimeError, match="the questions of the others"):
        paced_workers.check_facts("it", facts, {**facts, "questions": "b"}, tmp_path)
    with pytest.raises(RuntimeError, match="run the code in"):
        paced_workers.check_facts("it", facts, facts, tmp_path / "elsewhere")


def report(wall: float, cpu: float, **more: Any) -> dict[str, Any]:
    return {"wall": wall, "cpu": cpu, "sampled_tokens": 80.0, "searches": 8.0, **more}


def test_ratios_are_those_of_one_round_and_goals_are_judged_by_their_median() -> None:
    ours = {0: report(1.0, 0.5), 1: report(2.0, 0.5), 2: report(1.0, 0.25)}
    trl = {i: report(6.0, 1.0, rollout_wall=3.0, rollout_cpu=2.0) for i in range(3)}
    one_by_one = {1: report(20.0, 5.0, rollout_wall=10.0, rollout_cpu=1.0)}
    engine = {i: report(1.0, 1.0, episodes=["x", "x"]) for i in range(3)}
    first = {i: report(2.5, 4.0, episodes=["x", "x" if i else "y"]) for i in range(3)}
    reports = {"updates": {OURS: ours, TRL: trl, ONE_BY_ONE: one_by_one}, "collect": {ENGINE: engine, FIRST: first}}
    result = peer_training.summary(reports, replace(TINY, rounds=3, episodes=8))

    over_trl = result["ratios"]["updates over TRL"]  # 6/1, 6/2, 6/1 by wall time, 1/.5, 1/.5, 1/.25 by CPU time
    assert over_trl["rounds"] == 3
    assert [over_trl["wall"][x] for x in ("lowest", "median", "highest")] == [3.0, 6.0, 6.0]
    assert [over_trl["cpu"][x] for x in ("lowest", "median", "highest")] == [2.0, 2.0, 4.0]
    assert result["ratios"]["updates over TRL, one by one"]["wall"]["median"] == 10.0
    assert result["ratios"]["updates over TRL, one by one"]["rounds"] == 1
    assert result["ratios"]["rollouts over TRL"]["wall"]["median"] == 3.0
    assert result["goals"] == {
        "updates over TRL": {"goal": 5.0, "measured": 6.0, "met": True},
        "rollouts over TRL": {"goal": 5.0, "measured": 3.0, "met": False},
        "collect over first issue": {"goal": 3.0, "measured": 2.5, "met": False},
    }
    assert result["updates"][OURS]["episodes_per_second"]["median"] == 8.0
    assert result["updates"][OURS]["episode"] == {"sampled_tokens": 80.0, "searches": 8.0}
    assert result["collect"][ENGINE]["episode"] == {"sampled_tokens": 10.0, "searches": 1.0}
    assert result["collect"][ENGINE]["same_episodes"] == round(5 / 6, 4)


@needs_trl
@pytest.mark.slow
def test_trl_trains_in_the_same_run(tmp_path: Path) -> None:
    result = run(replace(TINY, output=tmp_path / "peer.json"))
    assert result["updates"].keys() == {OURS, TRL, ONE_BY_ONE}
    assert result["machine"]["trl"]["torch"] == torch.__version__
    for name in (TRL, ONE_BY_ONE):
        rows = result["updates"][name]
        assert 0 < result["rollouts"][name]["wall_seconds"]["median"] < rows["wall_seconds"]["median"]
        assert rows["episode"]["all_tokens"] > rows["episode"]["sampled_tokens"] > 3
    assert result["ratios"]["updates over TRL"]["rounds"] == 2
    assert result["ratios"]["updates over TRL, one by one"]["rounds"] == 1


@pytest.fixture
def own_accelerator() -> Iterator[None]:
    """Keeps what TRL tells accelerate from the tests that follow."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trl_settings(tmp_path: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": "tiny",
        "env": to_jsonable(EnvConfig()),
        "episodes": 8,
        "at_a_time": 8,
        "group_size": 4,
        "minibatch_size": 4,
        "kl_coef": 0.005,
        "learning_rate": 1e-3,
        "threads": 1,
        "seed": 1,
        "updates": 1,
        "run_dir": str(tmp_path / "run"),
        **more,
    }


@needs_trl
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("own_accelerator")
def test_trl_plays_episodes_of_the_environment_and_scores_them_as_we_do(tmp_path: Path) -> None:
    from benchmarks import paced_trl

    trainer, episodes = paced_trl.make_trainer(trl_settings(tmp_path))
    questions = episodes.envs.task.questions
    output = episodes([questions[i].text for i in range(8)], trainer)
    env = make_envs(EnvConfig(), load_model("tiny")[1], 1)
    columns = zip(output["prompt_ids"], output["completion_ids"], output["env_mask"], strict=True)
    for index, (prompt, completion, env_mask) in enumerate(columns):
        # Playing the sampled tokens again, one by one, gives the same episode, and it ends with the last of them.
        env.reset(options={"question_index": index})
        for token in np.array(completion)[np.array(env_mask, dtype=np.bool_)]:
            env.step([np.array([token])])
        (episode,) = env.episodes
        assert episode.is_finished
        assert episode.transcript.token_ids.tolist() == prompt + completion
        assert episode.transcript.loss_mask.tolist() == [False] * len(prompt) + [bool(x) for x in env_mask]

        ids = torch.tensor([prompt + completion])
        real = torch.ones_like(ids)
        with torch.no_grad():
            logprobs, entropies, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, real, len(completion), compute_entropy=True
            )
        ours = evaluate_tokens(trainer.model, ids, real.bool(), torch.tensor(episode.transcript.loss_mask)[None], 1.0)
        is_sampled = torch.tensor(env_mask, dtype=torch.bool)[None]
        torch.testing.assert_close(logprobs * is_sampled, ours.logprobs[:, len(prompt) :], atol=1e-5, rtol=0)
        torch.testing.assert_close(entropies * is_sampled, ours.entropies[:, len(prompt) :], atol=1e-5, rtol=0)


@needs_trl
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("own_accelerator")
def test_trl_draws_our_questions_and_improves_the_policy_that_was_loaded(tmp_path: Path) -> None:
    from benchmarks import paced_trl

    trainer, episodes = paced_trl.make_trainer(trl_settings(tmp_path, updates=2))
    questions = episodes.envs.task.questions
    drawn = QuestionOrder(len(questions), 1).take(4)
    assert list(trainer.train_dataset["prompt"]) == [questions[i].text for i in drawn]
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    reference = {name: weight.clone() for name, weight in trainer.ref_model.named_parameters()}
    assert all(torch.equal(before[name], reference[name]) for name in before)
    trainer.train()
    assert trainer.state.global_step == 2 * 2
    assert any(not torch.equal(before[name], weight) for name, weight in trainer.model.named_parameters())
    assert all(torch.equal(reference[name], weight) for name, weight in trainer.ref_model.named_parameters())


@needs_trl
@pytest.mark.filterwarnings("ignore")
def test_every_token_that_closes_a_tag_ends_a_turn_of_trl() -> None:
    from agents.tiny_trl import closing_ids

    codec = load_model("tiny")[1]
    assert [codec.decode([i]) for i in closing_ids(codec)[1:]] == ["</search>", "</answer>"]
