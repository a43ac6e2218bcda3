"""Rows of ``benchmarks.baselines`` whose policy is trained by Stable-Baselines3 or sb3-contrib.

    python -m benchmarks.baselines --methods sb3-ppo sb3-maskable-ppo --num-seeds 5 --output benchmarks/results/sb3.json

These policies hold no language model. `search_gym.wrappers.MacroActions` finds the names and relations in question and
documents; an MLP says which of them to search for or to answer. So they learn when to search for what, not to write,
and what they learn starts from nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents.models import load_model
from agents.tasks import env_options, make_envs, question_kind, reuse
from benchmarks.baseline_methods import METRICS, Outcome, Size, held_out, timed, untouched
from search_gym.adapters.sb3 import Played, macro_env, play
from search_gym.plugins import require
from search_gym.rewards import em_score


@dataclass(frozen=True)
class Settings:
    """Sizes of the view and hyperparameters; those that are not here are the library's defaults."""

    steps: int = 80_000
    num_names: int = 4
    num_relations: int = 2
    num_envs: int = 16
    n_steps: int = 128
    batch_size: int = 256
    n_epochs: int = 8
    learning_rate: float = 1e-3
    ent_coef: float = 0.003
    net_arch: tuple[int, ...] = (64, 64)
    normalize_advantage: bool = False


def train_and_evaluate(algorithm: str, size: Size, seed: int, run_dir: Path, settings: Settings) -> Outcome:
    """Train "PPO" or "MaskablePPO" and answer the held-out questions; the model is saved in ``run_dir``.

    Raises:
        MissingDependencyError: the libraries are not installed.
    """
    package = require("stable_baselines3" if algorithm == "PPO" else "sb3_contrib", extra="sb3")
    make_vec_env = require("stable_baselines3.common.env_util", extra="sb3").make_vec_env
    codec = load_model("tiny")[1]
    slots = {"env_id": "search_gym/SearchQA-v0", "num_names": settings.num_names}
    slots["num_relations"] = settings.num_relations
    options = {**env_options(size.env, codec), **reuse(make_envs(size.env, codec, 1)), **slots}
    envs = make_vec_env(macro_env, n_envs=settings.num_envs, seed=seed, env_kwargs=options)
    model = getattr(package, algorithm)(
        "MultiInputPolicy",
        envs,
        n_steps=settings.n_steps,
        batch_size=settings.batch_size,
        n_epochs=settings.n_epochs,
        learning_rate=settings.learning_rate,
        ent_coef=settings.ent_coef,
        gamma=1.0,
        normalize_advantage=settings.normalize_advantage,
        policy_kwargs={"net_arch": list(settings.net_arch)},
        seed=seed,
        device="cpu",
        verbose=1,
    )
    _, spent = timed(lambda: model.learn(settings.steps, log_interval=5))
    model.save(run_dir / "model.zip")
    test_envs, index = held_out(size.env, codec, make_envs, size.questions_per_kind)
    env = macro_env(**{**env_options(size.env, codec), **reuse(test_envs), **slots})
    played = play(model, env, untouched(index))
    return Outcome([question_kind(p.episode.question) for p in played], [_score(p) for p in played], *spent)


def _score(played: Played) -> dict[str, float]:
    """The metrics of `METRICS`."""
    em = em_score(played.answer, played.episode.question.answers)
    values = (em, played.num_searches, played.episode.transcript.loss_mask.sum())
    return {metric: float(value) for metric, value in zip(METRICS, values, strict=True)}
