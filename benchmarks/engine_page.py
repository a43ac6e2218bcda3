"""What `benchmarks.engine_speed` has measured, as tables of docs/speed.md and docs/scale.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agents.runlog import write_text
from benchmarks.pages import put

ROOT = Path(__file__).parents[1]
SPEED_PAGE, SCALE_PAGE = ROOT / "docs/speed.md", ROOT / "docs/scale.md"
MODULE = "benchmarks.engine_speed"

PAPER_ROUNDS, PAPER_PROMPTS = 500, 512
PAPER_GROUP_SIZES = {"PPO": 1, "GRPO": 5}
"""Rollouts of a prompt in the reference's scripts."""


def table(results: Mapping[str, Any]) -> str:
    """The parts that compare two ways, as a Markdown table."""
    head = ["", "| what | ours | beside it | ratio |", "|---|---:|---:|---:|"]
    return "\n".join([_made_by(results), *head, *_rows(results)])


def _made_by(results: Mapping[str, Any]) -> str:
    return f"`python -m {MODULE}` on {results['device']}, torch {results['torch']}:"


def _rows(results: Mapping[str, Any]) -> Iterator[str]:
    if "tokens_per_second" in (part := results.get("decode", {})):
        yield (
            f"| decoding, {part['slots']} slots around {part['mean_context']} tokens of context | "
            f"{part['tokens_per_second']:,} tokens/s | {part['generate_tokens_per_second']:,} (`generate`) | "
            f"{part['ratio']} |"
        )
    if "ratio" in (part := results.get("rollouts", {})):
        yield (
            f"| episodes of {part['mean_turns']:g} turns and {part['mean_tokens']:.0f} tokens, "
            f"{part['mean_sampled_tokens']:.0f} of them sampled | {part['episodes_per_second']:g} episodes/s | "
            f"{part['reference_episodes_per_second']:g} (`generate` every turn) | {part['ratio']} |"
        )
    if "plain_tokens_per_second" in (part := results.get("update", {})):
        yield from _update_rows(part)
    if "share_50_ms" in (part := results.get("retriever", {})):
        yield (
            f"| share of the time that a 50 ms retriever costs, {part['slots']} slots | {part['share_50_ms']:.1%} | "
            f"{part['share_50_ms_without_overlap']:.1%} (without overlap) | |"
        )
    if "episodes" in (part := results.get("check", {})):
        differ = f"{part['episodes_that_differ']} of {part['episodes']}"
        yield f"| episodes that differ from the simple engine's, float32 | {differ} | | |"


def _update_rows(part: Mapping[str, Any]) -> Iterator[str]:
    what = f"| update, {part['rows']} x {part['tokens_a_row']} tokens, all sampled | "
    plain = f"{part['plain_tokens_per_second']:,} (plain)"
    yield f"{what}{part['ours_tokens_per_second']:,} tokens/s | {plain} | {part['ours_ratio']} |"
    if part["plain_peak_gb"]:
        plain = f"{part['plain_peak_gb']:g} GB (plain)"
        yield f"| its peak memory | {part['ours_peak_gb']:g} GB | {plain} | {part['ours_memory_ratio']} |"
        yield (
            f"| the same in four micro-batches | {part['ours_in_four_peak_gb']:g} GB, "
            f"{part['ours_in_four_tokens_per_second']:,} tokens/s | {plain} | "
            f"{part['ours_in_four_memory_ratio']}, {part['ours_in_four_ratio']} |"
        )


def paper_table(results: Mapping[str, Any]) -> str:
    """Rounds at the size of the paper's 3B model, and what its 500 rounds would take, as a Markdown table."""
    part = results.get("paper", {})
    lines = [
        _made_by(results),
        "",
        "| | rollouts | rollouts take | update takes | sampled tokens/s | peak memory | rollouts of the paper's round "
        "| GPU-hours of its 500 rounds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in part.items():
        if isinstance(row, Mapping) and "rollout_seconds" in row:
            tokens = row["sampled_tokens_per_round"] / (row["rollout_seconds"] + row["update_seconds"])
            lines.append(
                f"| {name} | {row['rollouts']} | {row['rollout_seconds']:.1f} s | {row['update_seconds']:.1f} s | "
                f"{tokens:,.0f} | {row['peak_gb']:g} GB | {paper_rollouts(name):,} | "
                f"{gpu_hours(name, row):.0f} |"
            )
    return "\n".join(lines)


def paper_rollouts(algorithm: str) -> int:
    """Episodes of a round in the reference's scripts."""
    return PAPER_PROMPTS * PAPER_GROUP_SIZES[algorithm]


def gpu_hours(algorithm: str, row: Mapping[str, Any]) -> float:
    """Of the paper's rounds, if every rollout takes as long as here."""
    seconds = (row["rollout_seconds"] + row["update_seconds"]) / row["rollouts"]
    return PAPER_ROUNDS * paper_rollouts(algorithm) * seconds / 3600


def write_pages(results: Mapping[str, Any], speed: Path = SPEED_PAGE, scale: Path = SCALE_PAGE) -> None:
    """Put both tables between the marks of their pages."""
    for page, name, text in ((speed, "figures", table(results)), (scale, "paper", paper_table(results))):
        write_text(page, put(page.read_text(encoding="utf-8"), name, MODULE, text))
