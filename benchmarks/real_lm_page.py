"""The page about the runs of `benchmarks.real_lm`, from their results alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MULTI_HOP = (
    "hotpotqa/bridge",
    "2wikimultihopqa/compositional",
    "2wikimultihopqa/inference",
    "2wikimultihopqa/bridge_comparison",
)
MULTI_HOP_NAME = "multi-hop"


def tables(compared: Mapping[str, Any]) -> str:
    """Both tables as Markdown."""
    lines = [
        "| method | seeds | s of training | rounds | EM before | EM, mean over sets | EM, all | EM, not yes/no "
        "| EM, multi-hop | EM, yes/no | searches | episodes that chain | gold passages seen |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in compared["methods"].items():
        seconds = " / ".join(f"{x:.0f}" for x in row["train_seconds"])
        em = [_interval(row["em"].get(group)) for group in ("all", "not yes/no", MULTI_HOP_NAME, "yes/no")]
        lines.append(
            f"| {name} | {len(row['seeds'])} | {seconds} | {' / '.join(map(str, row['updates']))} "
            f"| {row['mean_em_over_sets_before']:.3f} | {row['mean_em_over_sets']:.3f} | {' | '.join(em)} "
            f"| {row['searches']['all']:.2f} | {row['chains']['all']:.2f} | {row['support']['all']:.2f} |"
        )
    if differences := compared["differences"]:
        names = [f"{row['method']} − {row['minus']}" for row in differences]
        lines += ["", f"| EM, difference | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for group in differences[0]["em"]:
            cells = [_interval(row["em"][group], sign="+") for row in differences]
            lines.append(f"| {group} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(estimate: Mapping[str, float] | None, sign: str = "") -> str:
    if estimate is None:
        return "–"
    return f"{estimate['mean']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"


def page(
    compared: Mapping[str, Any], results: Sequence[Mapping[str, Any]], curves: str, *, side_by_side: int = 1
) -> str:
    """The text of docs/real_lm.md, from results alone."""
    first = results[0]
    config, sizes, counts = first["config"], first["config"]["sizes"], first["questions"]
    devices = ", ".join(sorted({result["device"] for result in results}))
    commands = "\n".join(portable(result["command"]) for result in results)
    warm = config["warmup"]
    form = (
        f"{warm['steps']} supervised steps of {warm['batch']} examples on form alone came first; "
        "`benchmarks/real_lm_warmup.py` says what they show, and that nobody looked whether it was right."
        if warm["steps"]
        else "There was no supervised warm-up."
    )
    shared = f" {side_by_side} runs at a time shared the GPU." if side_by_side > 1 else ""
    documents = f"{sizes['top_k']} document{'s' * (sizes['top_k'] > 1)}"
    return f"""# A real language model learns to search

Made by `python -m benchmarks.real_lm_compare`; do not edit.

Model: `{first["model"]}`, on {devices}.{shared} There are {counts["train"]:,} questions to train on and
{counts["held_out"]} held-out ones (ids in `benchmarks/real_lm_split.json`) of HotpotQA, 2WikiMultihopQA and NQ, over
one BM25 corpus of {first["passages"]:,} passages of at most {sizes["passage_tokens"]} tokens. {form}
All methods are trained in the same way, on the same questions, with {config["rollouts"]} rollouts a round, for the
same number of seconds; they answer the held-out questions greedily.

{summary_of(compared)}

"direct" answers at once, "rag1" and "rag3" find one or three documents in their prompt, and "search" may search up to
{sizes["max_searches"]} times for {documents} each. Brackets are 95 % bootstrap intervals over questions
(and over seeds, where there are several); differences are paired. Yes/no questions stand apart, because one can score
on them by always saying the same. Multi-hop: {", ".join(MULTI_HOP)}, without yes/no. Episodes that chain: a later
query names the title of a document that an earlier search found and the question does not name. The question sets are
small subsets, so the figures are not comparable with published ones.

{tables(compared)}

![learning curves]({curves})

The runs, each of which also writes its curve and all its transcripts:

```text
{commands}
```
"""


def summary_of(compared: Mapping[str, Any]) -> str:
    """What the differences say, a line for each method that searching is compared with."""
    lines = []
    for row in compared["differences"]:
        every = row["em"]["all"]
        verdict = "more than" if every["low"] > 0 else "less than" if every["high"] < 0 else "not told apart from"
        lines.append(f"* {row['method']}: EM {_interval(every, sign='+')} beside {row['minus']}: {verdict} it.")
    return "\n".join(lines) or "Only one method was run to its end."


def portable(command: str) -> str:
    """A command without the folders of the machine that it was given on."""
    words = shlex.split(command)
    for option, name in (("--data", "DATA"), ("--model", "MODEL"), ("--run-dir", "runs/real-lm")):
        if option in words:
            at = words.index(option) + 1
            words[at] = f"{name}/{Path(words[at]).name}" if option == "--run-dir" else name
    return shlex.join(["python", *words[1:]])
