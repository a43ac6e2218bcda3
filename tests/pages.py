"""What tests of pages share: what is in a page, and a tab of Chromium that shows it, driven by playwright."""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from search_gym.viewer.episodes import unpack

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="expected a Chromium, got none; do: apt install chromium"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None,
        reason="expected playwright to drive it, got none; do: pip install 'search-gym[browser]'",
    ),
]
"""Marks of tests that open a page in the browser."""


def embedded(page: str) -> dict[str, Any]:
    """What the browser of transcripts on a page reads."""
    found = re.search(r'<script type="text/plain" id="episodes">([\w+/=]*)</script>', page)
    assert found is not None
    return unpack(found[1])


def outside(page: str) -> list[str]:
    """Everything in a page that may have a browser load something: addresses, and what loads by other means."""
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    addresses = [address for address in re.findall(r"https?://[^\"' <)]+", page) if address not in namespaces]
    return addresses + re.findall(r"\bsrc=|@import|<link|<iframe|url\((?!#)|\bhref=\"(?!#)", page)


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser, without a window."""
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """One page, and everything that it has complained of or asked the network for."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.troubles: list[str] = []
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.troubles.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda r: r.url != address and self.troubles.append(r.url))
        self.page.goto(address)
        self.page.wait_for_selector("#browser:not([hidden]) .list > div", state="attached")

    def count(self) -> int:
        return self.page.locator(".list > div").count()

    def chosen(self) -> str:
        return self.page.locator(".list [aria-selected=true]").inner_text()

    def number(self, script: str) -> float:
        return self.page.evaluate(script)


# The smallest contrast (WCAG 2.1) of any text on what is painted behind it, colours blended from the page up.
CONTRAST = """() => {
  const pixel = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const blend = colours => {
    pixel.clearRect(0, 0, 1, 1);
    for (const colour of colours) { pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1); }
    return pixel.getImageData(0, 0, 1, 1).data;
  };
  let least = 21;
  const texts = "h1, h2, h3, h4, p, td, th, small, label, li, a, button, dt, dd, .t, .list b, .list span";
  for (const element of document.querySelectorAll(texts)) {
    if (!element.offsetParent || !element.textContent.trim()) continue;
    const behind = [];
    for (let node = element; node; node = node.parentElement) behind.unshift(getComputedStyle(node).backgroundColor);
    const paper = blend(behind), ink = blend([...behind, getComputedStyle(element).color]);
    const [low, high] = [luminance(paper), luminance(ink)].sort((a, b) => a - b);
    least = Math.min(least, (high + 0.05) / (low + 0.05));
  }
  return least;
}"""
