"""The report of a run: complete, self-contained, safe, and clear about a broken run folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib")

from agents.report import main
from search_gym.cli import main as search_gym_main
from search_gym.errors import OptionError, SearchGymError
from search_gym.viewer import charts, is_stale, write_page
from search_gym.viewer.run_folder import load_run
from tests.pages import embedded, outside

KINDS = ("1-hop", "2-hop")
DIGITS = "0123456789k"
HOSTILE = "<script>alert('x')</script>$\033[31m"


def make_metrics(num_updates: int = 100) -> list[dict[str, float]]:
    """Curves of the usual shapes with noise; as in a real run, some metrics are missing in some updates."""
    rng = np.random.default_rng(0)
    rows = []
    for update in range(num_updates):
        progress = update / num_updates
        rises = [1 / (1 + np.exp(-15 * (progress - middle))) for middle in (0.2, 0.5)]
        em = [float(np.clip(0.95 * rise + rng.normal(0, 0.03), 0, 1)) for rise in rises]
        rows.append(
            {
                "update": update,
                "time/seconds": 1.6 * update,
                "rollout/em": em[0] / 3 + 2 * em[1] / 3,
                "rollout/em/1-hop": em[0],
                "rollout/em/2-hop": em[1],
                "rollout/searches": 1 + rises[0] + rng.normal(0, 0.05),
                "rollout/valid_turns": float(np.clip(0.6 + 0.5 * rises[0] + rng.normal(0, 0.02), 0, 1)),
                "loss/policy": rng.normal(0, 0.02),
                "loss/value": 0.2 * (1 - rises[1]),
                "loss/approx_kl": abs(rng.normal(0.006, 0.003)),
                "loss/kl": 0.15 * rises[1] + abs(rng.normal(0, 0.004)),
                "loss/entropy": 1.4 - 1.1 * rises[0] + rng.normal(0, 0.03),
                "loss/clip_fraction": 0.1,
                "loss/explained_variance": rises[1] if update % 7 else float("nan"),
                "time/tokens_per_second": 9000 + rng.normal(0, 400),
            }
        )
    del rows[3]["rollout/em/2-hop"]
    return rows


def make_sample(label: str, question: str, gold: str, query: str, answer: str | None, em: float) -> dict[str, Any]:
    rng = np.random.default_rng(len(query))
    parts = [("prompt", f"Question: {question}"), ("action", f" <think> {query} </think> <search> {query} </search>")]
    document = f'Doc 1(Title: "Ada Lin") Ada Lin works for Borel. Doc 2(Title: "Borel") The seat of Borel is {gold}.'
    parts.append(("observation", f" <information> {document} </information>"))
    parts.append(
        ("action", f" <think> it is {gold} </think>" + (f" <answer> {answer} </answer>" if answer else " <answer>"))
    )
    tokens: list[str] = []
    spans = []
    for kind, text in parts:
        start = len(tokens)
        tokens += re.findall(r"\s?\S+", text)
        spans.append({"kind": kind, "start": start, "stop": len(tokens)})
    sampled = [span["kind"] == "action" for span in spans for _ in range(span["start"], span["stop"])]
    arrays = {
        "logprobs": -rng.exponential(0.3, len(tokens)),
        "values": rng.uniform(0, 1, len(tokens)),
        "advantages": rng.normal(0, 1, len(tokens)),
    }
    return {
        "label": label,
        "question": question,
        "answers": [gold, f"City of {gold}"],
        "kind": "2-hop",
        "answer": answer,
        "em": em,
        "spans": spans,
        "token_ids": list(range(len(tokens))),
        "tokens": tokens,
        **{k: [x if s else None for x, s in zip(v.tolist(), sampled, strict=True)] for k, v in arrays.items()},
    }


def make_run(run_dir: Path) -> Path:
    """A run folder as training leaves it."""
    run_dir.mkdir(parents=True)
    after, static = {"1-hop": 0.953, "2-hop": 0.912}, {"1-hop": 0.938, "2-hop": 0.171}
    baselines = {
        "no-search": {"1-hop": 0.041, "2-hop": 0.052},
        "static-rag": static,
        "oracle": dict.fromkeys(KINDS, 1.0),
    }
    before = {"1-hop": 0.031, "2-hop": 0.012}

    def widen(em: dict[str, float]) -> dict[str, list[float]]:
        return {kind: [max(0.0, score - 0.025), min(1.0, score + 0.025)] for kind, score in em.items()}

    summary = {
        "em_before": before,
        "em_after": after,
        "baselines": baselines,
        "intervals": {
            "em_before": widen(before),
            "em_after": widen(after),
            "baselines": {name: widen(em) for name, em in baselines.items()},
        },
        "train_seconds": 158.4,
        "seed": 3,
    }
    config = {
        "command": "python -m agents.ppo --preset demo",
        "algorithm": "ppo",
        "seed": 3,
        "env": {"questions": "tinywiki", "kinds": ["1-hop", "2-hop"], "top_k": 3, "corpus": None},
        "ppo": {"learning_rate": 1e-3, "clip": 0.2, "kl_coef": 0.01},
    }
    question = "In which city is the employer of Ada Lin based ?"
    samples = [
        make_sample("before", question, "Torvik", "the film that Ada", None, 0.0),
        make_sample("after", question, "Torvik", "employer of Ada Lin", "Torvik", 1.0),
        make_sample("after", "Where is the employer of Bo Ek based ?", "Milan", "Bo Ek", "Rome", 0.0),
    ]
    (run_dir / "config.json").write_text(json.dumps(config))
    (run_dir / "summary.json").write_text(json.dumps(summary))
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_metrics()))
    (run_dir / "transcripts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    return run_dir


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = make_run(tmp_path_factory.mktemp("runs") / "demo")
    write_page(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    return (run_dir / "report.html").read_text(encoding="utf-8")


def edit(run_dir: Path, tmp_path: Path, name: str, **changes: Any) -> Path:
    """A copy of the run with fields of ``name`` (of its first line, in a ``.jsonl``) replaced, or dropped if None."""
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    first, newline, rest = (copy / name).read_text().partition("\n")
    data = {key: value for key, value in json.loads(first).items() if key not in changes}
    data |= {key: value for key, value in changes.items() if value is not None}
    (copy / name).write_text(json.dumps(data) + newline + rest)
    return copy


def table(page: str) -> dict[str, list[tuple[str, ...]]]:
    """The rows of the evaluation table: score, bounds and bar width of each cell."""
    rows = re.findall(r'<tr class="\w*"><th scope="row">(.*?)</th>(.*?)</tr>', page)
    cell = re.compile(
        r'<td>([\d.]+)(?:<small>([\d.]+) to ([\d.]+)</small>)?<span class="bar"><i style="width:([\d.]+)%'
    )
    return {name: cell.findall(cells) for name, cells in rows}


# The page


def test_the_table_holds_every_score_of_the_summary(page: str) -> None:
    rows = table(page)
    assert list(rows) == ["Before training", "No search", "Static RAG", "After training", "Oracle"]
    assert rows["Static RAG"] == [("0.94", "0.91", "0.96", "93.8"), ("0.17", "0.15", "0.20", "17.1")]
    assert rows["After training"] == [("0.95", "0.93", "0.98", "95.3"), ("0.91", "0.89", "0.94", "91.2")]


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    assert outside(page) == []


def test_the_curves_follow_the_colours_of_the_page(page: str) -> None:
    svg = page[page.index("<svg") : page.rindex("</svg>")]
    assert not re.search("|".join((charts.INK, charts.SOFT, charts.LINE)), svg)
    assert set(re.findall(r"(?<!, )#[0-9a-f]{6}", svg)) <= {"#000000", "#ffffff"}
    for title in ("Exact match", "Searches per episode", "valid turns", "Entropy", "KL per token", "Tokens per second"):
        assert title in svg


def test_the_picture_is_a_png(run_dir: Path) -> None:
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_every_episode_is_on_the_page(page: str) -> None:
    data = embedded(page)
    shown = [(data["labels"][e["label"]], e["question"], e["answer"], e["em"]) for e in data["episodes"]]
    assert shown == [
        ("Before training", "In which city is the employer of Ada Lin based ?", None, 0.0),
        ("After training", "In which city is the employer of Ada Lin based ?", "Torvik", 1.0),
        ("After training", "Where is the employer of Bo Ek based ?", "Rome", 0.0),
    ]


def test_every_sampled_token_has_its_numbers(run_dir: Path, page: str) -> None:
    data = embedded(page)
    assert data["values"] == ["log-probability", "value", "advantage", "ratio"]
    rows = [json.loads(line) for line in (run_dir / "transcripts.jsonl").read_text().splitlines()]
    for row, episode in zip(rows, data["episodes"], strict=True):
        assert [data["texts"][place] for place in episode["tokens"]] == row["tokens"]
        *known, ratio = episode["values"]
        assert ratio is None
        for numbers, name in zip(known, ("logprobs", "values", "advantages"), strict=True):
            sampled = [x for x in row[name] if x is not None]
            assert len(sampled) > 5
            np.testing.assert_allclose(numbers, sampled, rtol=1e-3)


def test_the_same_run_gives_the_same_page(run_dir: Path, page: str) -> None:
    assert write_page(run_dir).read_text(encoding="utf-8") == page


def test_hostile_text_stays_text(run_dir: Path, tmp_path: Path) -> None:
    row = json.loads((run_dir / "transcripts.jsonl").read_text().splitlines()[0])
    texts = {"label": HOSTILE, "question": HOSTILE, "kind": HOSTILE, "answer": HOSTILE, "answers": [HOSTILE]}
    copy = edit(run_dir, tmp_path, "transcripts.jsonl", **texts, tokens=[HOSTILE] * len(row["tokens"]))
    scores = {HOSTILE: 0.5}
    for name, changes in {
        "config.json": {"algorithm": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}},
        "summary.json": {"em_before": scores, "em_after": scores, "baselines": {HOSTILE: scores}},
    }.items():
        data = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({**data, **changes, "intervals": {}}))
    (copy / "metrics.jsonl").write_text("".join(json.dumps({f"rollout/em/{HOSTILE}": i}) + "\n" for i in range(3)))
    page = write_page(copy).read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script") == 2
    assert "alert('x')" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in page
    assert "\033" not in page
    assert embedded(page)["texts"][0] == HOSTILE.replace("\033", "␛")


def test_what_is_not_known_is_left_out(run_dir: Path, tmp_path: Path) -> None:
    unknown = dict.fromkeys(("intervals", "baselines", "train_seconds", "seed"))
    copy = edit(run_dir, tmp_path, "summary.json", **unknown)
    (copy / "transcripts.jsonl").write_text("")
    (copy / "metrics.jsonl").write_text(
        '{"rollout/searches": 1}\n{"rollout/searches": null}\n{"rollout/searches": 2}\n'
    )
    page = write_page(copy).read_text(encoding="utf-8")
    assert table(page)["After training"] == [("0.95", "", "", "95.3"), ("0.91", "", "", "91.2")]
    assert "Searches per episode" in page
    main_part = page[page.index("<main") : page.index('id="reproduce"')]
    assert not re.search("Entropy|Transcripts|95 %|None", main_part)


def test_alarms_are_listed_with_those_of_updates_that_were_given_up(run_dir: Path, tmp_path: Path) -> None:
    copy = edit(run_dir, tmp_path, "metrics.jsonl", update=7, alarms=[{"name": "non-finite", "message": "<script>"}])
    row = {"update": 1057, "alarms": [{"name": "entropy collapse", "message": "entropy is 0.01 & falls"}]}
    (copy / "abandoned.jsonl").write_text(json.dumps({"update": 3}) + "\n" + json.dumps(row) + "\n")
    page = write_page(copy).read_text(encoding="utf-8")
    items = re.findall(r"<li>(update.*?)</li>", page)
    assert [re.sub("<.*?>", "", item) for item in items] == [
        "update 7: non-finite: &lt;script&gt;",
        "update 1,057: entropy collapse: entropy is 0.01 &amp; falls",
    ]


def test_a_run_without_alarms_shows_none(page: str) -> None:
    assert "Alarms" not in page


def test_what_was_not_finite_comes_back_as_nan(run_dir: Path, tmp_path: Path) -> None:
    copy = edit(run_dir, tmp_path, "metrics.jsonl", **{"loss/kl": None})
    path = copy / "metrics.jsonl"
    path.write_text(path.read_text().replace("{", '{"loss/kl": null, ', 1))
    assert np.isnan(load_run(copy).metrics[0]["loss/kl"])


# Broken run folders


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json", "transcripts.jsonl"])
@pytest.mark.parametrize("content", ["{", "[1, 2]\n", b"\xff\xfe"])
def test_a_malformed_file_is_named(run_dir: Path, tmp_path: Path, name: str, content: str | bytes) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    (copy / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SearchGymError, match=re.escape(str(copy / name))):
        load_run(copy)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_missing_file_is_named(run_dir: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    (copy / name).unlink()
    with pytest.raises(SearchGymError, match=re.escape(str(copy / name))):
        load_run(copy)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("metrics.jsonl", {"loss/kl": "high"}, "metrics.jsonl, line 1"),
        ("metrics.jsonl", {"alarms": [{"name": "non-finite"}]}, "alarms with name and message"),
        ("metrics.jsonl", {"alarms": 3}, "alarms with name and message"),
        ("summary.json", {"em_after": None}, "em_after"),
        ("summary.json", {"em_after": 0.9}, "em_after"),
        ("summary.json", {"em_before": {"1-hop": "low"}}, "em_before"),
        ("summary.json", {"intervals": {"em_after": {"1-hop": [0.1]}}}, "summary.json"),
        ("summary.json", {"baselines": {"oracle": 1.0}}, "summary.json"),
        ("summary.json", {"train_seconds": "long"}, "train_seconds"),
        ("transcripts.jsonl", {"tokens": None}, "transcripts.jsonl, line 1"),
        ("transcripts.jsonl", {"tokens": ["one"]}, "cover 1 tokens"),
        ("transcripts.jsonl", {"values": [1.0]}, "one value for each"),
        ("transcripts.jsonl", {"spans": [{"kind": "prompt", "start": 0}]}, "transcripts.jsonl, line 1"),
        ("transcripts.jsonl", {"spans": [{"kind": "forged", "start": 0, "stop": 1}], "tokens": ["x"]}, "forged"),
        ("transcripts.jsonl", {"em": "right"}, "transcripts.jsonl, line 1"),
    ],
)
def test_a_malformed_field_is_named(
    run_dir: Path, tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SearchGymError, match=re.escape(message)):
        load_run(edit(run_dir, tmp_path, name, **changes))


def test_a_run_that_has_just_begun_has_no_curves(run_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy", ignore=shutil.ignore_patterns("curves.*")))
    (copy / "metrics.jsonl").write_text('{"rollout/em": NaN}\n{"rollout/em": NaN}\n{"rollout/em": 1}\n')
    assert "Too few updates for curves" in write_page(copy).read_text(encoding="utf-8")
    assert not (copy / "curves.png").exists()


def test_the_command_writes_the_report(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    (copy / "report.html").unlink()
    main([str(copy)])
    assert capsys.readouterr().out == f"{copy / 'report.html'}\n"
    assert (copy / "report.html").exists()


def test_the_command_explains_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "nowhere")])
    assert "expected a folder with a run's config.json" in capsys.readouterr().err


def test_reading_a_run_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys, agents.report; assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# Curves


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12), st.integers(0, 8))
def test_smooth_is_the_mean_of_what_is_in_the_window(values: list[float], half_width: int) -> None:
    windows = [values[max(0, i - half_width) : i + half_width + 1] for i in range(len(values))]
    expected = [sum(window) / len(window) for window in windows]
    np.testing.assert_allclose(charts.smooth(np.array(values), half_width), expected, rtol=1e-12, atol=1e-9)


@given(st.floats(1, 1e30), st.booleans())
@settings(max_examples=15)
def test_a_few_huge_numbers_do_not_hide_the_others(largest: float, has_negative: bool) -> None:
    """A number of usual size stays visible: the scale is logarithmic where a linear one would not tell it from 0."""
    y = np.where(np.arange(40) == 25, largest, 1.0)
    y[26] = -1.0 if has_negative else 1.0
    svg = charts.to_svg(charts.Panel("Gradient norm", [charts.Line("", np.arange(40.0) / 1000, y)]))
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert ("log scale" in labels) == (largest >= charts.WIDE)
    ticks = [
        float(label.replace("k", "e3").replace(",", "").replace("\u2212", "-"))
        for label in labels
        if label[-1] in DIGITS
    ]
    assert 1.0 <= max(ticks) <= 1.3 * largest
    assert all(len(label) <= 6 for label in labels if label[-1] in DIGITS)


def test_a_file_has_one_legend_for_panels_without_their_own(tmp_path: Path) -> None:
    x = np.arange(3.0)
    lines = [charts.Line("PPO", x, x), charts.Line("GRPO", x, x + 1, 1)]
    for legend, count in ((False, 1), (True, 3)):
        charts.save([charts.Panel(f"Panel {i}", lines, legend=legend) for i in range(3)], tmp_path / "plot")
        svg = (tmp_path / "plot.svg").read_text(encoding="utf-8")
        assert [svg.count(f">{name}</text>") for name in ("PPO", "GRPO")] == [count, count]
        assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


# search-gym view


def test_view_makes_the_page_once(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    page = copy / "page.html"
    assert search_gym_main(["view", str(copy), "--output", str(page)]) == 0
    assert opened == [page.as_uri()]
    assert re.fullmatch(rf"{re.escape(str(page))} \([\d,]+ kB\)\n", capsys.readouterr().out)
    first = page.stat().st_mtime_ns
    assert search_gym_main(["view", str(copy), "--output", str(page), "--no-open"]) == 0
    assert (len(opened), page.stat().st_mtime_ns) == (1, first)
    os.utime(copy / "metrics.jsonl", ns=(first + 10**9, first + 10**9))
    assert is_stale(copy, page)
    assert search_gym_main(["view", str(copy), "--output", str(page), "--no-open"]) == 0
    assert page.stat().st_mtime_ns > first


def test_view_says_where_the_page_is_if_no_browser_opens(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    monkeypatch.setattr("webbrowser.open", lambda address: False)
    assert search_gym_main(["view", str(copy)]) == 0
    assert "open the file in one" in capsys.readouterr().out


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match=r"a run's config.json or a study's study.json"):
        write_page(tmp_path)
    assert search_gym_main(["view", str(tmp_path), "--no-open"]) == 2
    assert "such as runs/demo" in capsys.readouterr().err


def test_only_what_a_run_has_kept_is_needed(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "ppo"
    copy.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(run_dir / name, copy)
    page = write_page(copy).read_text(encoding="utf-8")
    assert "in the last 10 updates" in page
    assert 'id="transcripts"' not in page
    assert 'id="scores"' not in page
