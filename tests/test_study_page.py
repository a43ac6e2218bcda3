"""The page of a study: of a real one, whole, and of one whose collapses are known; as a command and in a browser."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pyarrow")
pytest.importorskip("scipy", reason="the statistics of the study need: pip install 'search-gym[study]'")
pytest.importorskip("statsmodels", reason="the statistics of the study need: pip install 'search-gym[study]'")

from benchmarks.collapse.folder import write_study
from benchmarks.collapse.study import Study
from search_gym.viewer import write_page
from tests.pages import CONTRAST, NEEDS_CHROMIUM, Tab, chromium, embedded, outside
from tests.simulated_studies import cell_of, run, study, write_folder
from tests.small_studies import make_study

ROOT = Path(__file__).parents[1]


def report(folder: Path, *options: str) -> str:
    """Run the command, and return the page that it writes."""
    command = [sys.executable, "-m", "benchmarks.report", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    page = Path(done.stdout.rpartition(" (")[0])
    assert re.fullmatch(r"[\d,.]+ [kM]B\)\n", done.stdout.rpartition(" (")[2])
    return page.read_text(encoding="utf-8")


def headings(page: str) -> list[str]:
    return [html.unescape(heading) for heading in re.findall(r"<h2[^>]*>(.*?)</h2>", page)]


def section(page: str, name: str) -> str:
    return page.partition(f'<section id="{name}"')[2].partition("</section>")[0]


def rows_of(markup: str) -> list[list[str]]:
    """The cells of every row of the tables in ``markup``, without their small print."""
    plain = re.sub(r"<small>.*?</small>|<(?!/?t[rdh]\b)[^>]*>", "", markup)
    rows = re.findall(r"<tr\b[^>]*>(.*?)</tr>", plain)
    return [[html.unescape(cell) for cell in re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", row)] for row in rows]


# A real study


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path, str]:
    """A study of four runs, its folder, and its page as the command writes it."""
    folder = tmp_path_factory.mktemp("study")
    return make_study(folder), folder, report(folder)


def test_a_study_has_every_section_that_its_runs_allow(made: tuple[Study, Path, str]) -> None:
    _, folder, page = made
    assert headings(page) == [
        "Survival and learning curves",
        "What changes what",
        "Beside what was published",
        "Cells",
        "Transcripts",
        "Reproduce",
        "Configuration",
    ]
    links = re.findall(r'<a href="#(\w+)">', page.partition("</nav>")[0])
    assert links == re.findall(r'<section id="(\w+)"', page)
    assert "<h1>PPO &amp; GRPO, very small</h1>" in page
    assert "At which learning rates is &lt;anything&gt; learned?" in page
    assert "<b>4</b> of 4" in page
    # No run of four updates learns, let alone collapses: the page says so, and judges no indicator.
    assert re.findall(r"(\w+) runs collapsed</dt><dd><b>(\d)</b> of (\d)", page) == [
        ("GRPO", "0", "2"),
        ("PPO", "0", "2"),
    ]
    assert outside(page) == []
    assert f"python -m benchmarks.report {folder}" in section(page, "reproduce")
    assert html.escape(json.loads((folder / "study.json").read_text())["command"]) in section(page, "reproduce")


def test_the_table_of_cells_is_made_of_the_runs(made: tuple[Study, Path, str]) -> None:
    plan, folder, page = made
    head, *body = rows_of(section(page, "cells"))
    assert head[:6] == ["Cell", "Runs", "Collapsed", "P(collapse)", "Updates survived", "Held-out EM, IQM"]
    runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert len(body) == len(plan.cells) == 2
    for cell, row in zip(plan.cells, body, strict=True):
        mine = [one for one in runs if one["cell"] == cell.name]
        assert row[:4] == [cell.label, "2", "0 of 2", "0.00"]
        shown = dict(zip(head, row, strict=True))
        # The middle half of two runs is all of both.
        for kind in ("1-hop", "2-hop"):
            expected = fmean(one[f"held_out.{kind}"] for one in mine)
            assert float(shown[f"{kind} EM, IQM"]) == pytest.approx(expected, abs=0.0051)
        assert float(shown["Final EM"]) == pytest.approx(fmean(one["final_em"] for one in mine), abs=0.0051)


def test_every_transcript_is_on_the_page(made: tuple[Study, Path, str]) -> None:
    plan, folder, page = made
    data = embedded(page)
    files = {f"{one.cell.label}, seed {one.seed}": one.folder(folder) / "transcripts.jsonl" for one in plan.runs()}
    assert data["runs"] == list(files)
    kept = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in files.items()}
    assert len(data["episodes"]) == sum(map(len, kept.values())) == 4 * 3 * 4
    for number, (name, rows) in enumerate(kept.items()):
        shown = [episode for episode in data["episodes"] if episode["run"] == number]
        assert [data["labels"][episode["label"]] for episode in shown] == [row["label"] for row in rows]
        assert [episode["reward"] for episode in shown] == [round(row["reward"], 4) for row in rows]
        assert [[data["texts"][place] for place in episode["tokens"]] for episode in shown] == [
            r["tokens"] for r in rows
        ]
        has_values = [episode["values"][data["values"].index("value")] is not None for episode in shown]
        assert set(has_values) == {name.startswith("PPO")}


def test_every_chart_stands_beside_the_page(made: tuple[Study, Path, str]) -> None:
    _, folder, page = made
    names = {"survival-rates", "learning-rates"}
    assert {path.name for path in (folder / "plots").iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("png", "svg")
    }
    for name in names:
        assert (folder / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        svg = ElementTree.parse(folder / "plots" / f"{name}.svg").getroot()
        words = {element.text for element in svg.iter() if element.text and element.text.strip()}
        assert {"PPO", "GRPO", "update"} <= words
    assert section(page, "curves").count("<svg") == 3  # survival of all together and of the one setting, learning


def test_a_study_without_statistics_has_a_page_that_says_how_to_make_them(
    made: tuple[Study, Path, str], tmp_path: Path
) -> None:
    plan, folder, _ = made
    for name in ("study.json", "runs.jsonl", "table.parquet"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert f"python -m benchmarks.collapse --tables-only --run-dir {tmp_path}" in section(page, "curves")
    assert [row[:2] for row in rows_of(section(page, "cells"))[1:]] == [[cell.label, "2"] for cell in plan.cells]

    # Tables alone claim neither the command nor the commit of the runs; a new run does.
    path = tmp_path / "study.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "command": "the one that ran", "torch": "0.1"}))
    write_study(tmp_path, plan, runs=False)
    kept = json.loads(path.read_text())
    assert (kept["command"], kept["torch"], len(kept["cells"])) == ("the one that ran", "0.1", 2)
    write_study(tmp_path, plan)
    assert json.loads(path.read_text())["command"] != "the one that ran"


# A study whose collapses are known


ONSET, SEEDS = 24, range(12)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """GRPO collapses in every run, after its entropy has; PPO never does. One gradient is 1e12 times as large."""
    folder = tmp_path_factory.mktemp("known")
    updates = np.arange(1, 41)
    records = []
    for seed in SEEDS:
        wave = 1.0 + 0.02 * np.sin(updates + seed)
        fallen = np.where(updates >= ONSET - 10, 0.02, wave)
        spiked = np.where(updates == ONSET + 1, 1e12, wave)
        records.append(run("ppo", seed=seed, algorithm="ppo", **{"loss/entropy": wave, "loss/grad_norm": wave}))
        records.append(run("grpo", seed=seed, onset=ONSET, **{"loss/entropy": fallen, "loss/grad_norm": spiked}))
    group = {"name": "rates", "question": "Which?", "design": "crossing", "algorithms": ["ppo", "grpo"]}
    cells = [cell_of(name, name, groups=("rates",)) for name in ("ppo", "grpo")]
    write_folder(study(cells, records, [group]), folder)
    return folder, report(folder, "--output", str(folder / "page.html"))


def test_collapses_are_counted_and_stand_beside_the_other_algorithm(known: tuple[Path, str]) -> None:
    _, page = known
    assert re.findall(r"(\w+) runs collapsed</dt><dd><b>(\d+)</b> of (\d+)", page) == [
        ("GRPO", "12", "12"),
        ("PPO", "0", "12"),
    ]
    rows = {row[0]: row for row in rows_of(section(page, "cells"))[1:]}
    assert rows["grpo"][1:4] == ["12", "12 of 12", "1.00"]
    assert float(rows["grpo"][4]) == pytest.approx(ONSET, abs=2)  # the mean over some updates falls later
    assert rows["ppo"][1:5] == ["12", "0 of 12", "0.00", "40.0"]
    # A survival curve that falls to nothing before the end stands over the same updates as the others.
    survival = re.findall(r'<svg role="img" aria-label="[^"]*".*?</svg>', section(page, "curves"), re.DOTALL)[0]
    assert ">40</text>" in survival
    effects = rows_of(section(page, "effects"))
    assert effects[1][0].startswith("GRPO instead of PPO")
    assert effects[1][1:3] == ["12", "+1.00"]


def test_an_indicator_has_its_worth_as_a_warning_in_words(known: tuple[Path, str]) -> None:
    folder, page = known
    indicators = section(page, "indicators")
    captions = dict(re.findall(r"<figure><h3>(.*?)</h3>.*?<figcaption>(.*?)</figcaption>", indicators, re.DOTALL))
    detects, lead, false_alarms = re.match(
        r"detects (\d+) % of 12 collapses, (\d+) updates before \(median\); false alarms in (\d+) % of 12 runs",
        captions["Entropy"].replace("%", " %").replace("  ", " "),
    ).groups()
    assert (detects, false_alarms) == ("100", "0")
    assert 5 <= int(lead) <= 12  # entropy fell 10 updates before
    legend = re.findall(r'<li><i class="key( dashed)?" style="color:var\(--series-(\d)\)"></i>(.*?)</li>', indicators)
    assert legend == [("", "0", "PPO, did not collapse"), (" dashed", "1", "GRPO, collapsed")]
    assert "log scale" in indicators.partition("Gradient norm")[2]
    assert "log scale" not in indicators.partition("Gradient norm")[0]
    assert {path.stem for path in (folder / "plots").iterdir()} == {"indicators", "survival-rates", "learning-rates"}


# In the browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


class TestBrowser:
    pytestmark = NEEDS_CHROMIUM

    @pytest.fixture
    def tab(self, browser: Any, made: tuple[Study, Path, str]) -> Iterator[Tab]:
        tab = Tab(browser, (made[1] / "report.html").as_uri())
        yield tab
        assert tab.troubles == []
        tab.context.close()

    def test_runs_and_updates_are_filters(self, tab: Tab, made: tuple[Study, Path, str]) -> None:
        assert tab.count() == 48
        plan = made[0]
        names = [f"{one.cell.label}, seed {one.seed}" for one in plan.runs()]
        assert tab.page.locator("[name=run] option").all_inner_texts() == ["any", *names]
        tab.page.select_option("[name=run]", label=names[1])
        assert tab.count() == 12
        tab.page.select_option("[name=label]", label="update 4")
        assert tab.count() == 4
        tab.page.select_option("[name=kind]", label="2-hop")
        assert tab.count() == 2
        assert tab.page.locator(".count").inner_text() == "2 of 48 episodes"
        # Beside it stands the same question at another update of the same run.
        left, right = (heading.partition(":")[0] for heading in tab.page.locator(".transcript h4").all_inner_texts())
        assert left == f"update 4 · {names[1]}"
        assert re.fullmatch(rf"update [02] · {re.escape(names[1])}", right)

    def test_tables_are_sorted_by_a_click_or_a_key(self, tab: Tab) -> None:
        def column(number: int) -> list[str]:
            return tab.page.locator(f"#cells tbody tr > :nth-child({number})").all_inner_texts()

        names = column(1)
        button = tab.page.locator("#cells thead button").first
        button.click()
        assert column(1) == sorted(names, reverse=True)
        button.focus()
        tab.page.keyboard.press("Enter")
        assert column(1) == sorted(names)
        assert tab.page.locator("#cells th[aria-sort=ascending]").count() == 1

    def test_the_keyboard_reaches_every_part(self, tab: Tab) -> None:
        seen = set()
        for _ in range(80):
            tab.page.keyboard.press("Tab")
            where = "document.activeElement.name || document.activeElement.className || document.activeElement.tagName"
            seen.add(tab.page.evaluate(where))
        assert {"skip", "A", "SUMMARY", "BUTTON", "scroll", "find", "run", "list", "color", "beside", "tokens"} <= seen
        first = tab.chosen()
        tab.page.evaluate("document.activeElement.blur()")
        tab.page.keyboard.press("j")
        assert tab.chosen() != first
        summary = tab.page.locator("#settings summary")
        summary.focus()
        tab.page.keyboard.press("Enter")
        assert tab.page.locator("#settings table").is_visible()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    @pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
    def test_it_fits_and_reads_well(
        self, browser: Any, made: tuple[Study, Path, str], scheme: str, width: int, height: int
    ) -> None:
        size = {"width": width, "height": height}
        tab = Tab(browser, (made[1] / "report.html").as_uri(), viewport=size, color_scheme=scheme)
        tab.page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        assert tab.number("document.documentElement.scrollWidth - innerWidth") <= 0
        assert tab.page.evaluate(CONTRAST) >= 4.5
        assert tab.troubles == []
        tab.context.close()
