"""The page in a real browser: Chromium without a window, driven by playwright."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install 'search-gym[browser]'")

from playwright import sync_api

from search_gym.viewer import write_page
from tests.pages import CONTRAST, NEEDS_CHROMIUM, Tab, chromium
from tests.test_report import make_run

pytestmark = NEEDS_CHROMIUM

HOSTILE = (
    "</script><script>alert(1)</script>", "\0", "🙂", "\u202e", "שלום",
    "<img src=x onerror=alert(1)>", "\ud800", "a\n\n",
)  # fmt: skip


def make_long(run_dir: Path) -> None:
    """Add ratios to every episode, and a hostile episode of 10,000 tokens at the end."""
    path = run_dir / "transcripts.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["ratios"] = [None if x is None else 1.0 + 0.1 * (i % 7 - 3) for i, x in enumerate(row["logprobs"])]
        row["searches"], row["reward"] = 1.0, row["em"]
    tokens = [HOSTILE[i % len(HOSTILE)] for i in range(10_000)]
    spans = [{"kind": "prompt", "start": 0, "stop": 10}, {"kind": "action", "start": 10, "stop": 10_000}]
    hostile = {
        **rows[0],
        "question": HOSTILE[0],
        "answers": [HOSTILE[0]],
        "kind": "<b>",
        "searches": 3.0,
        "reward": 0.2,
    }
    hostile |= {"spans": spans, "tokens": tokens, "values": [None] * 10_000, "advantages": [None] * 10_000}
    hostile |= {"logprobs": [None] * 10 + [-0.5] * 9_990, "ratios": [None] * 10_000, "label": "after"}
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows[:-1], hostile, rows[-1])))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    run_dir = make_run(tmp_path_factory.mktemp("runs") / "demo")
    make_long(run_dir)
    return write_page(run_dir).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser: Any, address: str) -> Iterator[Tab]:
    tab = Tab(browser, address)
    yield tab
    assert tab.troubles == []
    tab.context.close()


def test_filters_leave_the_episodes_that_they_name(tab: Tab) -> None:
    assert tab.count() == 4
    for name, value, left in (
        ("reward", "right", 1),
        ("reward", "=0.2", 1),
        ("kind", "1", 1),
        ("searches", "3", 1),
        ("searches", "1", 3),
        ("label", "0", 1),
    ):
        tab.page.select_option(f"[name={name}]", value)
        assert tab.count() == left, (name, value)
        assert tab.page.locator(".count").inner_text() == f"{left} of 4 episodes"
        tab.page.click("button[type=reset]")
        sync_api.expect(tab.page.locator(".list > div")).to_have_count(4)
    tab.page.fill("[name=find]", "bo ek")
    assert tab.count() == 1
    tab.page.fill("[name=find]", "no such words")
    assert tab.count() == 0
    assert tab.page.locator(".question").inner_text() == "No episode matches"


def test_two_checkpoints_stand_beside_each_other(tab: Tab) -> None:
    headings = tab.page.locator(".transcript h4").all_inner_texts()
    assert [re.split(r"\n", heading)[0] for heading in headings] == [
        "After training: answered “Torvik”",
        "Before training: no answer",
    ]
    left, right = (tab.page.locator(".transcript").nth(i).bounding_box() for i in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    tab.page.select_option("[name=beside]", "")
    assert tab.page.locator(".transcript").count() == 1


def test_tokens_take_the_colours_of_their_numbers(tab: Tab) -> None:
    assert tab.page.locator(".scale").inner_text().split() == ["prompt", "sampled", "retrieved"]
    names = tab.page.locator("[name=color] option").all_inner_texts()
    assert names == ["author", "log-probability", "value", "advantage", "ratio"]
    for name in names[1:]:
        tab.page.select_option("[name=color]", label=name)
        sampled = tab.page.locator(".turn.sampled .t").count()
        assert sampled == tab.page.locator(".turn.sampled .t:is(.up, .down)").count() > 20
        assert tab.page.locator(".turn:not(.sampled) .t:is(.up, .down)").count() == 0
        assert tab.page.locator(".scale .ramp span span").count() == (2 if name == "log-probability" else 3)
        painted = tab.page.evaluate(
            "new Set([...document.querySelectorAll('.sampled .t')].map(t => getComputedStyle(t).backgroundColor)).size"
        )
        assert painted > 3
    assert tab.page.locator(".scale .ramp span span").nth(1).inner_text() == "1"


def test_hover_and_focus_show_the_numbers_of_a_token(tab: Tab) -> None:
    tab.page.locator(".turn.sampled .t").first.hover()
    tip = tab.page.locator(".tip")
    shown = tip.inner_text()
    assert re.match(r"token \d+, sampled: ", shown)
    for name in ("log-probability −", "value ", "advantage ", "ratio "):
        assert name in shown
    tab.page.locator(".turn.prompt .t").first.hover()
    assert tip.inner_text() == 'token 0, prompt: "Question:"'
    tab.page.locator(".tokens").first.focus()
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("ArrowRight")
    assert tab.page.locator(".t.at").count() == 1
    assert re.match(r"token \d+, ", tip.inner_text())
    tab.page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_everything_is_in_reach_of_the_keyboard(tab: Tab) -> None:
    first = tab.chosen()
    tab.page.keyboard.press("k")
    assert tab.chosen() != first
    tab.page.keyboard.press("j")
    assert tab.chosen() == first
    tab.page.keyboard.press("/")
    assert tab.page.evaluate("document.activeElement.name") == "find"
    tab.page.keyboard.type("jk")
    assert tab.page.input_value("[name=find]") == "jk"
    tab.page.keyboard.press("Escape")
    tab.page.click("button[type=reset]")
    sync_api.expect(tab.page.locator(".list > div")).to_have_count(4)
    tab.page.keyboard.press("c")
    assert tab.page.locator("[name=color]").evaluate("menu => menu.selectedIndex") == 1
    tab.page.locator(".list").focus()
    tab.page.keyboard.press("Home")
    tab.page.keyboard.press("ArrowDown")
    assert tab.page.locator(".list").get_attribute("aria-activedescendant") == "episode-1"
    seen = []
    tab.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    for _ in range(60):
        tab.page.keyboard.press("Tab")
        seen.append(tab.page.evaluate("document.activeElement.name || document.activeElement.className"))
        outline = tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or seen[-1] == ""
    for stop in ("find", "reward", "list", "color", "beside", "tokens"):
        assert stop in seen


def test_a_hostile_episode_of_ten_thousand_tokens_is_shown_as_text(tab: Tab) -> None:
    tab.page.select_option("[name=searches]", "3")
    assert tab.page.locator(".columns img, .columns script").count() == 0
    assert tab.page.locator(".t").count() == 10_000
    assert HOSTILE[0] in tab.page.locator(".question").inner_text()
    assert tab.number("document.documentElement.scrollWidth - innerWidth") <= 0
    tab.page.select_option("[name=color]", label="log-probability")
    assert tab.page.locator(".t.up, .t.down").count() == 9_990


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways_and_reads_well(browser: Any, address: str, scheme: str) -> None:
    tab = Tab(browser, address, viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    assert tab.number("document.documentElement.scrollWidth - innerWidth") <= 0
    tab.page.locator(".turn.sampled .t").first.tap()
    assert "log-probability" in tab.page.locator(".tip").inner_text()
    assert tab.page.evaluate(CONTRAST) >= 4.5
    tab.page.select_option("[name=color]", label="advantage")
    assert tab.page.evaluate(CONTRAST) >= 4.5
    assert tab.troubles == []
    tab.context.close()


def test_the_switch_changes_the_theme(tab: Tab) -> None:
    papers = []
    for name in ("system", "light", "dark"):
        assert tab.page.locator("#theme").inner_text() == f"Theme: {name}"
        papers.append(tab.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        tab.page.click("#theme")
    assert papers[0] == papers[1] != papers[2]
