"""The frame of a page: one HTML file that holds its style, its program and its data, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from search_gym import __version__
from search_gym.render import harmless

Section = tuple[str, str, str]
"""Identifier, heading, and trusted markup; a section without markup is left out."""


def text(value: object) -> str:
    """``value`` as markup that shows it and is nothing else."""
    return escape(harmless(str(value)), quote=True)


def to_page(title: str, lead: str, sections: Sequence[Section], *, episodes: str = "") -> str:
    """A complete page.

    Args:
        title: of the page, as text.
        lead: what stands under it, as trusted markup.
        sections: of the page, in order; the navigation lists them.
        episodes: what `search_gym.viewer.episodes.pack` has packed, for a browser of transcripts.
    """
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{text(heading)}</a>' for name, heading, _ in shown)
    body = "".join(
        f'<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{text(heading)}</h2>'
        f"{harmless(markup)}</section>"
        for name, heading, markup in shown
    )
    data = f'<script type="text/plain" id="episodes">{episodes}</script>' if episodes else ""
    script = asset("page.js") + asset("episodes.js") + asset("browser.js")
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The browser itself refuses whatever would come from outside, and every program but this one.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{own}'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{text(title)} · search-gym</title>\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>{asset('page.css')}{asset('browser.css')}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the content</a>\n'
        f'<nav aria-label="Sections"><div><b>{text(title)}</b><span>{links}</span>'
        '<button type="button" id="theme" hidden>Theme: system</button></div></nav>\n'
        f'<main id="main"><header><h1>{text(title)}</h1>{harmless(lead)}</header>\n{body}\n'
        f"<footer>Made by search-gym {__version__}. One file, which loads nothing.</footer></main>\n"
        f"{data}\n<script>{script}</script>\n</body>\n</html>\n"
    )


@cache
def asset(name: str) -> str:
    """The text of a file that ships with this package."""
    return files("search_gym.viewer").joinpath("assets", name).read_text(encoding="utf-8")


def charts_grid(svgs: Sequence[tuple[str, str, str]], *, small: bool = False) -> str:
    """Charts side by side, as many as fit: of each a title, an SVG element, and a caption in trusted markup."""
    figures = "".join(
        f"<figure><h3>{text(title)}</h3>{svg}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"
        for title, svg, caption in svgs
    )
    return f'<div class="charts{" small" if small else ""}">{figures}</div>' if svgs else ""


def legend(names: Sequence[tuple[str, int, bool]]) -> str:
    """Which colour is what: names with the place of their colour, and whether the line is dashed."""
    keys = "".join(
        f'<li><i class="key{" dashed" if dashed else ""}" style="color:var(--series-{color})"></i>{text(name)}</li>'
        for name, color, dashed in names
    )
    return f'<ul class="legend">{keys}</ul>'


def bar(estimate: float, low: float | None, high: float | None) -> str:
    """A share between 0 and 1 as a bar, with its interval as a whisker."""
    whisker = ""
    if low is not None and high is not None:
        whisker = f'<u style="left:{low:.1%};width:{high - low:.1%}"></u>'
    return f'<span class="bar"><i style="width:{estimate:.1%}"></i>{whisker}</span>'


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """The bounds of an interval as small print; nothing where they are not known."""
    return "" if low is None or high is None else f"<small>{low:.{digits}f} to {high:.{digits}f}</small>"


def settings(config: Mapping[str, Any]) -> str:
    """Every option of a nested configuration in a table."""
    rows = "".join(f'<tr><th scope="row">{text(k)}</th><td><code>{text(v)}</code></td></tr>' for k, v in _flat(config))
    count = len(list(_flat(config)))
    table = f'<div class="scroll"><table class="settings"><tbody>{rows}</tbody></table></div>'
    return f"<details><summary>{count} options</summary>{table}</details>" if rows else ""


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value if isinstance(value, str) else json.dumps(value)


def command(line: str) -> str:
    """A command to copy."""
    return f'<div class="command"><pre><code>{text(line)}</code></pre><button type="button" hidden>Copy</button></div>'


def duration(seconds: float) -> str:
    """Seconds in the units that people use."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


BROWSER = """
<p class="note js-only">
Keys: <kbd>j</kbd> <kbd>k</kbd> next and previous episode, <kbd>/</kbd> find, <kbd>c</kbd> colours,
<kbd>b</kbd> beside; in a transcript <kbd>←</kbd> <kbd>→</kbd> go from token to token. Hover over a token, or tap it,
for its numbers.</p>
<noscript><p class="note">Transcripts need JavaScript. Nothing is loaded from anywhere.</p></noscript>
<div id="browser" hidden>
<form class="filters" role="search" aria-label="Filter episodes">
<label>Find <input type="search" name="find" autocomplete="off" placeholder="in questions and episodes"></label>
<label>Run <select name="run"></select></label>
<label>Checkpoint <select name="label"></select></label>
<label>Kind <select name="kind"></select></label>
<label>Reward <select name="reward"></select></label>
<label>Searches <select name="searches"></select></label>
<button type="reset">Clear</button>
</form>
<p class="count" role="status"></p>
<div class="panes">
<div class="list" role="listbox" tabindex="0" aria-label="Episodes"></div>
<div class="episode">
<div class="tools">
<label>Colour by <select name="color"></select></label>
<label>Beside <select name="beside"></select></label>
<div class="scale" aria-live="off"></div>
</div>
<h3 class="question"></h3><p class="note facts"></p>
<div class="columns"></div>
</div></div>
<div class="tip" role="status" aria-live="polite" hidden></div>
</div>
"""
"""The place that ``assets/browser.js`` fills with transcripts."""
