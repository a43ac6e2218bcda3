"""Study files, designs, and the options that levels stand for."""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from dataclasses import fields
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import algorithms
from agents.ppo import PPOConfig
from benchmarks.collapse.designs import crossing, fraction, one_at_a_time
from benchmarks.collapse.factors import CATALOGUE, FORMAT_WARMED, PRESET_LEVELS, TRAIN_ON_DOCUMENTS, Size, complete
from benchmarks.collapse.folder import read_study, write_study
from benchmarks.collapse.study import Study, config_of
from benchmarks.collapse.study_file import STUDIES, find, load, parse
from search_gym.errors import OptionError, UnknownNameError

SHIPPED = sorted(path.stem for path in STUDIES.glob("*.toml"))


def group(**changes: Any) -> dict[str, Any]:
    return {"name": "g", "design": "crossing", "factors": {"learning_rate": [1e-3, 2e-3]}} | changes


def study(*groups: dict[str, Any], **changes: Any) -> Study:
    return parse({"name": "s", "groups": list(groups or [group()])} | changes)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_study_of_ours_has_no_cell_twice_and_every_level(name: str) -> None:
    loaded = load(find(name))
    data = tomllib.loads(find(name).read_text())
    assert len({cell.name for cell in loaded.cells}) == len(loaded.cells)
    assert len({(cell.algorithm, *sorted(cell.levels.items())) for cell in loaded.cells}) == len(loaded.cells)
    for entry in data["groups"]:
        cells = [cell for cell in loaded.cells if entry["name"] in cell.groups]
        for factor, levels in entry.get("factors", {}).items():
            if factor == "algorithm":
                assert {cell.algorithm for cell in cells} == set(levels)
            else:
                assert {cell.levels[factor] for cell in cells if factor in cell.levels} >= set(levels)
    centers = [cell for cell in loaded.cells if cell.name.endswith("-center")]
    for cell in centers:
        assert cell.levels == complete(cell.algorithm, {}, loaded.center)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_run_of_a_study_of_ours_has_a_configuration_of_its_cell(name: str) -> None:
    loaded = load(find(name))
    for cell in loaded.cells:
        config = config_of(cell, 3, Path("folder"))
        assert config.seed == 3
        assert config.run_dir == Path("folder/runs") / cell.name / "seed-3"
        assert config.optimizer.learning_rate == cell.levels["learning_rate"]
        assert config.optimizer.value_learning_rate == pytest.approx(10 * config.optimizer.learning_rate)
        assert config.rollouts_per_update == config.minibatch_size * cell.levels["updates_per_round"]
        assert (config.kl_coef == 0) == (cell.levels["kl"] == "none")
        assert config.env.top_k == cell.levels["top_k"]
        assert ("noisy" in config.env.retriever) == (cell.levels["retrieval_noise"] > 0)
        assert cell.options[TRAIN_ON_DOCUMENTS] is not cell.levels["information_mask"]
        if cell.levels["preset"] == "matched":
            assert config.rollouts_per_update == loaded.size.rollouts_per_update
        else:
            assert config.rollouts_per_update == loaded.size.prompts_per_update * config.group_size


@pytest.mark.parametrize("name", ["default", "full"])
def test_the_larger_studies_have_all_that_the_question_needs(name: str) -> None:
    loaded = load(find(name))
    assert all(len(cell.seeds) >= 5 for cell in loaded.cells)
    levels: dict[str, set[Any]] = {}
    for cell in loaded.cells:
        for factor, level in cell.levels.items():
            levels.setdefault(factor, set()).add(level)
    assert len(levels["learning_rate"]) >= 4
    assert levels["group_size"] == {1, 3, 5, 8}
    assert levels["updates_per_round"] >= {2, 10}
    assert levels["kl"] == {"none", "k1-reward", "k3-loss"}
    assert levels["top_p"] == {0.95, 1.0}
    assert levels["information_mask"] == levels["value_mask"] == {True, False}
    assert levels["preset"] == {"matched", "search_r1"}
    assert {cell.algorithm for cell in loaded.cells} == {"ppo", "grpo", "dapo"}
    assert all(len(levels[remedy]) > 1 for remedy in ("clip_high", "llds", "entropy", "kl_coef"))
    if name == "full":
        assert levels["top_k"] == {1, 3, 5}
        assert levels["reward"] == {"em", "format"}
        assert levels["base"] == {"base", FORMAT_WARMED}
        assert max(levels["retrieval_noise"]) > 0


def test_first_seeds_come_first_and_important_groups_before_others() -> None:
    loaded = study(
        group(name="a", seeds=[1, 2]),
        group(name="b", factors={"learning_rate": [2e-3, 4e-3]}, seeds=[1, 2, 3]),
    )
    runs = [(run.cell.levels["learning_rate"], run.cell.algorithm, run.seed) for run in loaded.runs()]
    order = [(1e-3, "ppo"), (2e-3, "ppo"), (1e-3, "grpo"), (2e-3, "grpo"), (4e-3, "ppo"), (4e-3, "grpo")]
    # The cell that both groups have serves the first of them, with the seeds of both.
    third = [(2e-3, "ppo", 3), (2e-3, "grpo", 3), (4e-3, "ppo", 3), (4e-3, "grpo", 3)]
    assert runs == [(*cell, seed) for seed in (1, 2) for cell in order] + third
    assert loaded.cells[1].groups == ("a", "b")


def test_what_an_algorithm_does_not_know_is_left_out_of_it() -> None:
    loaded = study(group(design="one-at-a-time", factors={"value_mask": [False], "llds": [0.1], "top_p": [0.95]}))
    assert [cell.name for cell in loaded.cells] == [
        "ppo-center", "ppo-value-mask-false", "ppo-top-p-0.95", "grpo-center", "grpo-llds-0.1", "grpo-top-p-0.95",
    ]  # fmt: skip
    assert "llds" not in loaded.cells[0].levels
    assert "value_mask" not in loaded.cells[3].levels


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ({"groups": [group(factors={"learning_rat": [1e-3]})]}, UnknownNameError, "did you mean 'learning_rate'"),
        ({"groups": [group(factors={"learning_rate": [0]})]}, OptionError, "a number above 0 as a level of learning_"),
        ({"groups": [group(factors={"group_size": [2.5]})]}, OptionError, "1 or more as a level of group_size, got 2"),
        ({"groups": [group(factors={"kl": ["k2"]})]}, OptionError, "got 'k2'"),
        ({"groups": [group(factors={"information_mask": [1]})]}, OptionError, "one of [True, False]"),
        ({"groups": [group(factors={"top_p": [1.5]})]}, OptionError, "up to 1"),
        ({"groups": [group(factors={"learning_rate": [1e-3, 1e-3]})]}, OptionError, "different levels"),
        ({"groups": [group(factors={})]}, OptionError, "'factors' in the group 'g'"),
        ({"groups": [group(design="crosing")]}, UnknownNameError, "did you mean 'crossing'"),
        ({"groups": [group(algorithms=["gppo"])]}, UnknownNameError, "as algorithm"),
        ({"groups": [group(fairnes="x")]}, UnknownNameError, "did you mean 'fairness'"),
        ({"groups": [group(), group()]}, OptionError, "groups of different names"),
        ({"groups": []}, OptionError, "groups of different names"),
        ({"groups": [{"name": "g"}]}, OptionError, "['design'] in a group"),
        ({"groups": [group(factors={"updates_per_round": [7]})]}, OptionError, "divide the 120 episodes"),
        ({"groups": [group(factors={"group_size": [7]})]}, OptionError, "rollouts_per_update to be a multiple"),
        ({"groups": [group(fixed={"llds": 0.1})]}, OptionError, "factors that ppo has, got ['llds']"),
        ({"groups": [group(algorithms=["rloo"], fixed={"preset": "search_r1"})]}, OptionError, "for the preset"),
        ({"size": {"update": 3}}, UnknownNameError, "did you mean 'updates'"),
        ({"size": {"updates": 0}}, OptionError, "updates >= 1"),
        ({"center": {"topp": 1.0}}, UnknownNameError, "'top_p'"),
        ({"seeds": [1, 1]}, OptionError, "as seeds"),
        ({"seeds": [1.0]}, OptionError, "as seeds"),
        ({"sizes": {}}, UnknownNameError, "'size'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_study_is_named(data: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        study(**data)
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none\.toml"):
        load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(OptionError, match=r"bad\.toml"):
        load(tmp_path / "bad.toml")
    (tmp_path / "wrong.toml").write_text("name = 'x'\ngrops = []")
    with pytest.raises(UnknownNameError, match=r"wrong\.toml: .*did you mean 'groups'"):
        load(tmp_path / "wrong.toml")
    with pytest.raises(UnknownNameError, match="did you mean 'quick'"):
        find("quik")


def test_a_selection_keeps_order_and_says_what_there_is() -> None:
    loaded = study(group(name="a"), group(name="b", factors={"top_p": [0.9]}))
    assert [cell.levels["top_p"] for cell in loaded.select(["b"], [2]).cells] == [0.9, 0.9]
    assert loaded.select(["b"], [2]).seeds == (2,)
    assert loaded.select([], []) == loaded
    with pytest.raises(UnknownNameError):
        loaded.select(["c"], [])
    with pytest.raises(OptionError, match=r"seeds among \[1, 2, 3, 4, 5\], got \[9\]"):
        loaded.select([], [9])


@given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(), min_size=1, max_size=3, unique=True)))
def test_designs_count_as_they_should(factors: dict[str, list[int]]) -> None:
    crossed = crossing(factors)
    assert len(crossed) == math.prod(len(levels) for levels in factors.values())
    assert len({tuple(cell.items()) for cell in crossed}) == len(crossed)
    single = one_at_a_time(factors)
    assert single[0] == {}
    assert Counter(name for cell in single for name in cell) == {name: len(factors[name]) for name in factors}


def test_the_fraction_of_the_full_study_has_resolution_4() -> None:
    """In signs, every main effect is orthogonal to all other main effects and to all interactions of two factors."""
    (entry,) = [entry for entry in tomllib.loads(find("full").read_text())["groups"] if entry["design"] == "fraction"]
    cells = fraction(entry["factors"], entry["generators"])
    assert len(cells) == 2 ** (len(entry["factors"]) - len(entry["generators"])) == 16
    sign = {
        name: np.array([levels.index(cell[name]) * 2 - 1 for cell in cells])
        for name, levels in entry["factors"].items()
    }
    for name in sign:
        assert sign[name].sum() == 0
        assert all(sign[name] @ sign[other] == 0 for other in sign if other != name)
        pairs = [(a, b) for a, b in combinations(sign, 2) if name not in (a, b)]
        assert all(sign[name] @ (sign[a] * sign[b]) == 0 for a, b in pairs)


@pytest.mark.parametrize("generator", ["a*z", "a*a", "c", ""])
def test_a_generator_is_a_product_of_crossed_factors(generator: str) -> None:
    factors = {name: (0, 1) for name in "abc"}
    with pytest.raises(OptionError, match="generator"):
        fraction(factors, {"c": generator})
    with pytest.raises(OptionError, match="two levels of a"):
        fraction(factors | {"a": (0, 1, 2)}, {"c": "a*b"})


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_the_preset_search_r1_is_that_of_the_algorithms(name: str) -> None:
    """Everything but sizes and learning rates, which belong to the model, and what the other levels set."""
    (cell,) = study(group(algorithms=[name], fixed={"preset": "search_r1"}, factors={"top_k": [3]})).cells
    ours, theirs = config_of(cell, 1, Path()), algorithms.load(name).PRESETS["search_r1"]
    same = {"group_size", "epochs", "temperature", "top_p", "kl", "kl_coef", "entropy_coef", "clip_low", "clip_high"}
    same |= {field.name for field in fields(theirs)} & {"gamma", "lam", "advantages", "aggregation", "llds_coef"}
    for field in same:
        assert getattr(ours, field) == getattr(theirs, field), field
    for field in ("weight_decay", "epsilon", "final_fraction", "max_grad_norm"):
        assert getattr(ours.optimizer, field) == getattr(theirs.optimizer, field), field
    steps = [config.rollouts_per_update // config.minibatch_size for config in (ours, theirs)]
    assert steps[0] == steps[1] == {"ppo": 2, "grpo": 10}[name]
    shares = [config.optimizer.warmup_updates / config.updates for config in (ours, theirs)]
    assert shares[0] == pytest.approx(shares[1], abs=1 / ours.updates)
    assert ours.env.close_think is theirs.env.close_think is False
    if isinstance(ours, PPOConfig):
        assert ours.value.mask == theirs.value.mask
        assert ours.value.critic == theirs.value.critic
        assert ours.value.clip == theirs.value.clip
        assert ours.value.coef == theirs.value.coef


def test_levels_of_presets_are_levels() -> None:
    for by_algorithm in PRESET_LEVELS.values():
        for algorithm, levels in by_algorithm.items():
            for name, level in levels.items():
                assert CATALOGUE[name].check(level) is None
                assert CATALOGUE[name].applies_to(algorithm)
    for factor in CATALOGUE.values():
        assert factor.check(factor.center) is None


def test_120_episodes_can_be_cut_as_the_study_cuts_them() -> None:
    for size, steps in product((1, 3, 5, 8), (2, 4, 10)):
        assert Size().rollouts_per_update % size == Size().rollouts_per_update % steps == 0


def test_a_study_comes_back_from_its_folder(tmp_path: Path) -> None:
    for name in SHIPPED:
        loaded = load(find(name))
        write_study(tmp_path / name, loaded)
        assert read_study(tmp_path / name) == loaded
    with pytest.raises(OptionError, match=r"study\.json"):
        read_study(tmp_path)
