"""The benchmark of a real language model, on a tiny random one with real tokenizer files."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.local_completion import LocalCompleter
from agents.models import load_model
from agents.rollout import Rollout, TurnEvent
from benchmarks import real_lm, real_lm_compare, real_lm_data, real_lm_envs, real_lm_study, real_lm_warmup
from benchmarks.real_lm_chains import chain_scores
from benchmarks.real_lm_config import RealLMConfig, Sizes, Warmup
from benchmarks.real_lm_envs import METHODS, Worlds
from search_gym import HFCodec, Question, Transcript, retrievers
from search_gym.completion import Completion
from search_gym.errors import OptionError
from search_gym.rewards import Outcome, TurnRecord
from tests.real_text import byte_tokenizer
from tests.small_models import llama

PEOPLE = ("Ada", "Bo", "Cy", "Di", "Ed", "Flo")
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets: where people live, and whether they do, with passages that lead from one to the next."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("hotpotqa", "nq"):
        rows = [
            {
                "id": f"{name}-{p}",
                "question": f"where does {p} live now?",
                "golden_answers": ["yes" if p == "Bo" else f"{p}ville"],
                "metadata": {"type": "bridge", "supporting_ids": [f"{name}_{p}"]} if name == "hotpotqa" else {},
            }
            for p in PEOPLE
        ]
        passages = [
            {"id": f"{name}_{p}{i}", "contents": f'"{p}{i or ""}"\n{p} lives in {p}ville, says {name}.'}
            for p in PEOPLE
            for i in ("", 1, 2)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}_corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    real_lm_data.main(real_lm_data.SplitConfig(folder, folder / "split.json"))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_tokenizer()
    llama(len(tokenizer), max_position_embeddings=4096).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codec(model: Path) -> HFCodec:
    return HFCodec.from_pretrained(model)


def config(data: Path, model: Path, run_dir: Path, **options: Any) -> RealLMConfig:
    values: dict[str, Any] = {
        "sizes": Sizes(passage_tokens=60, top_k=1, max_searches=2, turn_tokens=180),
        "warmup": Warmup(steps=2, batch=2),
        "minutes": 5.0,
        "rollouts": 4,
        "group_size": 2,
        "updates": 1,
        "device": "cpu",
        "split": data / "split.json",
        **options,
    }
    return RealLMConfig(data=data, model=str(model), run_dir=run_dir, **values)


def worlds(data: Path, codec: HFCodec, method: Any, **options: Any) -> tuple[Worlds, real_lm_data.RealText]:
    text = real_lm_data.load(data, data / "split.json", codec, passage_tokens=60)
    env = real_lm_envs.env_config(method, passage_tokens=60, top_k=1, max_searches=3, turn_tokens=200)
    return Worlds(retrievers.load("bm25", text.documents), method, env, **options), text


# The split


def test_no_question_is_trained_on_and_judged_by(data: Path, codec: HFCodec) -> None:
    text = real_lm_data.load(data, data / "split.json", codec, passage_tokens=60)
    train, held_out = ({question.question_id for question in part} for part in (text.train, text.held_out))
    assert not train & held_out
    assert len(train | held_out) == 2 * len(PEOPLE)
    assert {question.metadata["set"] for question in text.held_out} == {"hotpotqa", "nq"}
    assert len(text.documents) == 2 * 3 * len(PEOPLE)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs questions and passages in ../shared/data")
def test_the_recorded_split_is_the_one_that_the_command_writes(tmp_path: Path) -> None:
    real_lm_data.main(real_lm_data.SplitConfig(SHARED, tmp_path / "split.json"))
    assert (tmp_path / "split.json").read_text() == real_lm_data.SPLIT.read_text()


def test_the_recorded_split_holds_nothing_but_ids() -> None:
    split = json.loads(real_lm_data.SPLIT.read_text())
    assert set(split) == {"about", "held_out"}
    ids = [question_id for ids in split["held_out"].values() for question_id in ids]
    assert len(ids) == len(set(ids)) == 523
    assert all(re.fullmatch(r"[\w-]+", question_id) for question_id in ids)


def test_a_split_of_other_questions_is_refused(data: Path, codec: HFCodec, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps({"held_out": {"nq": ["elsewhere"]}}))
    with pytest.raises(OptionError, match="elsewhere"):
        real_lm_data.load(data, tmp_path / "split.json", codec, passage_tokens=60)


def test_passages_are_cut_to_whole_words(codec: HFCodec) -> None:
    text = "Every token of this text is one letter or one space."
    cut = real_lm_data.shorten(text, codec, 20)
    assert text.startswith(cut + " ")
    assert 10 < len(codec.encode(cut)) <= 20
    assert real_lm_data.shorten(text, codec, 100) == text


# Environments


def titles(observation: str) -> list[str]:
    return re.findall(r'Title: "(.*?)"', observation)


@pytest.mark.parametrize("unseen", [True, False])
def test_later_searches_show_unseen_documents(data: Path, codec: HFCodec, unseen: bool) -> None:
    made, text = worlds(data, codec, "search", unseen=unseen)
    envs = made.make(text.train, codec, 2)
    for _ in range(2):  # what an episode has seen is forgotten with it
        envs.reset(options={"question_index": 0})
        seen = []
        for _ in range(3):
            observations, *_ = envs.step([codec.encode("<search>Ada lives</search>")] * 2)
            first, second = (titles(codec.decode(observation)) for observation in observations)
            assert first == second
            assert len(first) == 1
            seen += first
        rows = retrievers.load("bm25", text.documents).search(["Ada lives"], 3)[0]
        assert seen == ([row.title for row in rows] if unseen else [rows[0].title] * 3)


def test_methods_differ_in_documents_and_turns_alone(data: Path, codec: HFCodec) -> None:
    shown = {}
    for method in METHODS:
        made, text = worlds(data, codec, method)
        envs = made.make(text.train, codec, 1)
        prompts, _ = envs.reset(options={"question_index": 0})
        prompt = codec.decode(prompts[0])
        assert text.train[0].text in prompt
        shown[method] = len(titles(prompt)), envs.task.limits.max_turns
    assert shown == {"search": (0, 3), "direct": (0, 0), "rag1": (1, 0), "rag3": (3, 0)}


def test_a_worked_example_stands_before_the_question_and_is_not_rewarded(data: Path, codec: HFCodec) -> None:
    for method in METHODS:
        made, text = worlds(data, codec, method, prompt_fn=real_lm_envs.prompt_with_example(method))
        envs = made.make(text.train, codec, 1)
        prompts, _ = envs.reset(options={"question_index": 0})
        prompt = codec.decode(prompts[0])
        assert prompt.index("<answer> Karsia </answer>") < prompt.index(text.train[0].text)
        assert ("<search> Oda Lind </search>" in prompt) is (method == "search")
        _, rewards, *_ = envs.step([codec.encode("<answer>Karsia</answer>")])
        assert rewards[0] == 0.0


def test_the_reward_is_halfway_between_em_and_f1_and_falls_with_repeated_queries() -> None:
    turns = [TurnRecord("search", query, "") for query in ("Ada", "ada.", "Bo")]
    outcome = Outcome("in Adaville", ("Adaville",), tuple(turns), "")
    assert real_lm_envs.reward(outcome, repeat_penalty=0.0) == pytest.approx((0 + 2 / 3) / 2)
    assert real_lm_envs.reward(outcome, repeat_penalty=0.25) == pytest.approx(1 / 3 - 0.25)


# The warm-up


class Seen:
    """A completer that notes its prompts and always answers the same."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def complete(self, prompts: Any, **options: Any) -> Any:
        self.prompts += [prompt.message for prompt in prompts]
        return [Completion(" the lake.", 3, "stop") for _ in prompts]

    def option_logprobs(self, prompts: Any, options: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("method", METHODS)
def test_form_is_shown_without_an_answer_being_known(data: Path, codec: HFCodec, method: Any) -> None:
    made, text = worlds(data, codec, method)
    blind = real_lm_warmup.blind(text.train)
    assert {question.answers for question in blind} == {("?",)}
    assert all(not question.metadata for question in blind)
    completer = Seen()
    examples = real_lm_warmup.demonstrate(made.make(blind, codec, 1), method, 12, completer=completer, seed=1)
    assert len(examples) == len(completer.prompts) == 12
    assert all(("Passage: " in prompt.split("Karsia\n\n")[-1]) is (method != "direct") for prompt in completer.prompts)
    num_searches = set()
    for example in examples:
        sampled = codec.decode(example.token_ids[example.loss_mask])
        search, answer = (rf"<think> [^<>]+ </think>\n<{tag}> [^<>]+ </{tag}>" for tag in ("search", "answer"))
        assert re.fullmatch(rf"({search}){{0,2}}{answer}", sampled)
        assert sampled.endswith("<answer> the lake </answer>")
        num_searches.add(sampled.count("<search>"))
    assert num_searches == ({1, 2} if method == "search" else {0})


def test_a_second_search_names_what_the_first_one_found() -> None:
    found = '\n\n<information>Doc 1(Title: "Ada") x y\nDoc 2(Title: "Lake Bo") z</information>\n\n'
    question = Question("q", "where does Ada live?", ("?",))
    scripts = [real_lm_warmup.Script(0, seed) for seed in range(20)]
    turns = [script.turn("search", question, [found]) for script in scripts]
    assert {turn.partition("<search>")[2] for turn in turns if "<search>" in turn} == {" Lake Bo </search>"}
    spans = {script.turn("search", question, [found, found]).partition("<answer> ")[2] for script in scripts}
    assert spans <= {f"{span} </answer>" for span in ("x", "y", "z", "x y")}
    assert len(spans) > 1


def test_a_form_that_does_not_fit_is_refused(data: Path, codec: HFCodec) -> None:
    made, text = worlds(data, codec, "direct")
    short = replace(made, env=replace(made.env, max_turn_tokens=8))
    with pytest.raises(OptionError, match="turn-tokens"):
        real_lm_warmup.demonstrate(short.make(text.train, codec, 1), "direct", 4, completer=None, seed=1)


# Runs and their comparison


@pytest.fixture(scope="module")
def runs(data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every method, with one PPO beside."""
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        real_lm.main(config(data, model, folder / method, method=method))
    real_lm.main(config(data, model, folder / "ppo", algorithm="ppo", warmup=Warmup(steps=0)))
    return folder


def test_a_run_writes_scores_of_every_held_out_question(runs: Path, data: Path) -> None:
    held_out = {i for ids in json.loads((data / "split.json").read_text())["held_out"].values() for i in ids}
    for folder in runs.iterdir():
        result = json.loads((folder / "result.json").read_text())
        assert result["status"] == "done"
        assert result["updates"] == 1
        assert [evaluation["when"] for evaluation in result["evaluations"]] == ["before", "after"]
        for evaluation in result["evaluations"]:
            assert {row["id"] for row in evaluation["scores"]} == held_out
        assert len(result["curve"]) == 1
        assert ("warmup" in result) is (folder.name != "ppo")
        rows = [json.loads(line) for line in (folder / "transcripts.jsonl").read_text().splitlines()]
        assert len(rows) == 2 * len(held_out)
    # No question, and no answer, leaves the folder of the transcripts.
    assert "live now" not in (runs / "search" / "result.json").read_text()


def test_runs_are_compared_by_question(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = real_lm_compare.CompareConfig(runs, tmp_path / "real_lm.json", tmp_path / "real_lm.md")
    compared = real_lm_compare.main(options)
    assert set(compared["methods"]) == {"search, grpo", "direct, grpo", "rag1, grpo", "rag3, grpo", "search, ppo"}
    assert [row["minus"] for row in compared["differences"]] == ["direct, grpo", "rag1, grpo", "rag3, grpo"]
    assert (tmp_path / "images/real_lm.png").stat().st_size > 1000
    page = (tmp_path / "real_lm.md").read_text()
    assert "| search, grpo − rag3, grpo |" in page
    assert "live now" not in page


def test_a_run_that_was_cut_short_leaves_its_curve(runs: Path, tmp_path: Path) -> None:
    result = json.loads((runs / "search" / "result.json").read_text())
    del result["curve"], result["updates"], result["evaluations"][1]
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "result.json").write_text(json.dumps(result))
    (tmp_path / "cut" / "metrics.jsonl").write_text((runs / "search" / "metrics.jsonl").read_text() + '{"update": 2')
    (cut,) = real_lm_compare.read_results(tmp_path)
    assert [row["update"] for row in cut["curve"]] == [1]
    assert real_lm_compare.compare([cut]) == {"methods": {}, "differences": []}
    real_lm_compare.draw([cut], tmp_path / "curve.png")


def test_runs_of_different_options_are_no_seeds_of_each_other(runs: Path) -> None:
    result = json.loads((runs / "direct" / "result.json").read_text())
    again = {**result, "config": {**result["config"], "seed": 2}}
    methods = real_lm_compare.compare([result, again])["methods"]
    assert methods["direct, grpo"]["seeds"] == [1, 2]
    other = {**again, "config": {**again["config"], "learning_rate": 1.0}}
    with pytest.raises(OptionError, match="learning_rate"):
        real_lm_compare.compare([result, other])


def test_intervals_hold_the_difference_and_shrink_when_it_is_the_same_everywhere() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random((3, 400)) < 0.5).astype(np.float64)
    shifted = real_lm_compare.estimate(right + 0.1, right[:1])
    assert shifted.low < shifted.mean < shifted.high
    assert shifted.mean == pytest.approx(0.1 + right.mean() - right[0].mean())
    # One seed, the same questions: pairing leaves nothing to vary.
    same = real_lm_compare.estimate(right[:1] + 0.1, right[:1])
    assert same == pytest.approx((0.1, 0.1, 0.1))
    alone = real_lm_compare.estimate(right[:1])
    half = 1.96 * 0.5 / np.sqrt(400)
    assert alone.high - alone.low == pytest.approx(2 * half, rel=0.1)


def test_no_time_for_training_is_said(data: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--minutes"):
        real_lm.main(config(data, model, tmp_path, minutes=0.01, warmup=Warmup(steps=0)))
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "out of time before training"
    assert len(result["evaluations"]) == 1


def test_the_commands_of_a_study(tmp_path: Path) -> None:
    study = real_lm_study.StudyConfig(tmp_path, seeds=(1, 2), minutes=5.0, run_dir=tmp_path)
    made = real_lm_study.commands(study, tmp_path / "model", ["--learning-rate", "1e-5"])
    assert len(made) == 8
    assert len({folder for folder, _ in made}) == 8
    for _, command in made:
        assert command[command.index("--train-seconds") + 1] == "200.0"
        assert command[-2:] == ["--learning-rate", "1e-5"]


def test_a_study_ends_what_takes_too_long(tmp_path: Path) -> None:
    quick, slow = ([sys.executable, "-c", f"import time; time.sleep({seconds})"] for seconds in (0, 600))
    status = real_lm_study.run_all([(tmp_path / "a", quick), (tmp_path / "b", slow)], jobs=2, seconds=5.0)
    assert status == [0, None]


def test_the_untrained_model_reads(data: Path, model: Path, codec: HFCodec) -> None:
    """Whatever a random model reads, examples have the form."""
    made, text = worlds(data, codec, "rag1")
    completer = LocalCompleter(load_model(model)[0], codec)
    examples = real_lm_warmup.demonstrate(made.make(text.train, codec, 1), "rag1", 4, completer=completer, seed=1)
    assert len(examples) == 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_warm_up_is_learned(data: Path, model: Path, tmp_path: Path, precision: Any) -> None:
    """In bf16 too, where a cast of the weights that outlives a step would train on old ones."""
    warmup = Warmup(steps=12, batch=4, learning_rate=3e-3, answers="spans")
    run = real_lm.Run(config(data, model, tmp_path, method="direct", warmup=warmup, precision=precision))
    run.warm_up()
    nll = run.result["warmup"]["nll"]
    assert len(nll) == 12
    assert nll[-1] < nll[0] - 1.0


@pytest.mark.parametrize(
    ("second_query", "chains"),
    [("the shore of Lake Bo", 1.0), ("where Ada lives", 0.0), ("who lives there", 0.0)],
    ids=["a title that was found", "a title of the question", "no title"],
)
def test_chains_and_gold_passages_are_counted(codec: HFCodec, second_query: str, chains: float) -> None:
    question = Question("q", "where does Ada live?", ("x",), {"supporting_ids": ["a", "c"]})
    transcript = Transcript()
    for kind, text in (
        ("prompt", "where does Ada live?"),
        ("action", "<search>Ada</search>"),
        ("observation", 'Doc 1(Title: "Ada") lives\nDoc 2(Title: "Lake Bo") is deep'),
        ("action", f"<search>{second_query}</search>"),
        ("observation", 'Doc 1(Title: "Cy") is tall'),
        ("action", "<answer>x</answer>"),
    ):
        transcript.append(kind, codec.encode(text))  # type: ignore[arg-type]
    rollout = Rollout(
        question=question,
        question_index=0,
        token_ids=transcript.token_ids,
        spans=transcript.spans,
        loss_mask=transcript.loss_mask,
        logprobs=np.zeros(int(transcript.loss_mask.sum()), dtype=np.float32),
        reward=0.0,
        terminated=True,
        truncated=False,
        turns=(TurnEvent("search", "Ada"), TurnEvent("search", second_query), TurnEvent("answer", "x")),
        num_searches=2,
    )
    names = {"a": "Ada", "b": "Lake Bo", "c": "Di"}
    assert chain_scores(rollout, codec, names) == {"chains": chains, "support": 0.5}


def test_a_document_is_needed() -> None:
    with pytest.raises(OptionError, match="positive sizes"):
        real_lm_envs.env_config("search", passage_tokens=0, top_k=1, max_searches=1, turn_tokens=1)
