"""A transcript as ANSI text for a terminal and as HTML for a browser.

Both show who wrote what. Text is data here: whatever a policy or a document holds, no control character reaches the
terminal and no markup reaches the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from textwrap import indent

import numpy as np
import numpy.typing as npt

from search_gym.codec import TAG_STRINGS, TokenCodec
from search_gym.errors import OptionError
from search_gym.transcript import Span, Transcript

AUTHORS = {"prompt": "prompt", "action": "sampled", "observation": "retrieved"}
_ANSI = {"prompt": "2", "action": "32", "observation": "35"}
_TAG = re.compile("|".join(map(re.escape, TAG_STRINGS)))
_UNFINISHED = "\ufffd"

# C0 controls and DEL become their pictures; C1 controls, direction overrides and lone surrogates become U+FFFD.
_HARMLESS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
_HARMLESS |= {
    code: 0xFFFD
    for first, last in ((0x80, 0x9F), (0x202A, 0x202E), (0x2066, 0x2069), (0xD800, 0xDFFF))
    for code in range(first, last + 1)
}


def token_texts(transcript: Transcript, codec: TokenCodec) -> list[str]:
    """The text that each token adds to the decoded transcript, one string per token.

    A character whose bytes are spread over several tokens belongs to the last of them, the others add "". No character
    reaches across two spans.
    """
    ids = transcript.token_ids
    texts: list[str] = []
    # ids[base:i] is decoded for context; ids[done:] is what has not been shown in full yet.
    base = done = shown = 0
    for span in transcript.spans:
        text = ""
        for stop in range(span.start + 1, span.stop + 1):
            text = codec.decode(ids[base:stop])
            complete = text if stop == span.stop else _without_unfinished(text)
            texts.append(complete[shown:])
            shown = max(shown, len(complete))
            if texts[-1] and not text.endswith(_UNFINISHED):
                base, done = done, stop
                shown = len(codec.decode(ids[base:stop]))
        if text.endswith(_UNFINISHED):
            base, done, shown = span.stop, span.stop, 0
    return texts


def _without_unfinished(text: str) -> str:
    """``text`` without the replacement characters at its end that may stand for the first bytes of a character."""
    return text[: max(len(text.rstrip(_UNFINISHED)), len(text) - 3)]


def to_ansi(transcript: Transcript, codec: TokenCodec, *, color: bool = True) -> str:
    """The transcript for a terminal, a legend in its first line and every span on lines of its own.

    Without ``color`` each span stands indented under the name of its author.
    """
    texts = token_texts(transcript, codec)
    parts = [" ".join(_paint(name, _ANSI[kind]) for kind, name in AUTHORS.items())] if color else []
    for span in transcript.spans:
        text = "".join(texts[span.start : span.stop]).translate(_HARMLESS).strip()
        parts.append(_paint(text, _ANSI[span.kind]) if color else f"{AUTHORS[span.kind]}:\n{indent(text, '  ')}")
    return "\n".join(parts) + "\n"


def _paint(text: str, code: str) -> str:
    """``text`` in one colour with bold tags. Every line is painted on its own, because pagers forget."""
    lines = (_TAG.sub(rf"\033[1m\g<0>\033[0;{code}m", line) for line in text.split("\n"))
    return "\n".join(f"\033[{code}m{line}\033[0m" if line else "" for line in lines)


def to_html(
    transcript: Transcript,
    codec: TokenCodec,
    *,
    token_values: Mapping[str, npt.ArrayLike] | None = None,
    heading: str = "",
) -> str:
    """The transcript as an HTML fragment, to be put on an `html_page`.

    ``token_values``: numbers per token (T,), by name, shown on hover; NaN where there is none.

    Raises:
        OptionError: an array's shape is not (T,).
    """
    return spans_to_html(
        token_texts(transcript, codec), transcript.spans, token_values=token_values or {}, heading=heading
    )


def spans_to_html(
    texts: Sequence[str],
    spans: Sequence[Span],
    *,
    token_values: Mapping[str, npt.ArrayLike],
    heading: str = "",
) -> str:
    """`to_html` for one whose tokens are already text: ``texts`` as from `token_texts`, ``spans`` over them."""
    values = {name: np.asarray(array, dtype=np.float64) for name, array in token_values.items()}
    for name, array in values.items():
        if array.shape != (len(texts),):
            raise OptionError(f"expected token_values[{name!r}] of shape ({len(texts)},), got {array.shape}")
    shade = ""
    if values:
        options = "".join(f"<option>{_safe(name)}</option>" for name in values)
        shade = f'<label class="sg-shade">shade by <select><option value="">author</option>{options}</select></label>'
    legend = "".join(f'<span class="sg-key sg-{kind}">{name}</span>' for kind, name in AUTHORS.items())
    title = f'<h3 class="sg-heading">{_safe(heading)}</h3>' if heading else ""
    blocks = "".join(
        f'<div class="sg-span sg-{span.kind}" role="group" aria-label="{AUTHORS[span.kind]}">'
        f"{''.join(_html_tokens(texts, span, values))}</div>\n"
        for span in spans
    )
    return f'<section class="sg-transcript">{title}<div class="sg-legend">{legend}{shade}</div>\n{blocks}</section>\n'


def harmless(text: str) -> str:
    """``text`` with pictures or U+FFFD for controls, direction overrides and lone surrogates."""
    return text.translate(_HARMLESS)


def _safe(text: str) -> str:
    return escape(harmless(text), quote=True)


def _html_tokens(texts: Sequence[str], span: Span, values: Mapping[str, npt.NDArray[np.float64]]) -> Iterator[str]:
    """The markup of each group of tokens that makes whole characters."""
    whole = "".join(texts[span.start : span.stop])
    tagged = [False] * len(whole)
    for tag in _TAG.finditer(whole):
        tagged[tag.start() : tag.end()] = [True] * len(tag[0])
    # Line breaks at the edges of a block are drawn as a sign, not as empty lines; a space that joins spans is dropped.
    first, last = len(whole) - len(whole.lstrip("\n")), len(whole.rstrip("\n"))
    position, group = 0, []
    for index in range(span.start, span.stop):
        group.append(index)
        if not texts[index] and index + 1 < span.stop:
            continue
        pieces = []
        for mark, start, stop in _runs(tagged, position, position + len(texts[index])):
            text = whole[start:stop]
            if start < first or stop > last:
                text = text.replace("\n", "↵")
            if start == 0:
                text = text.removeprefix(" ")
            pieces.append(f"<b>{_safe(text)}</b>" if mark else _safe(text))
        position += len(texts[index])
        yield _html_token("".join(pieces), group, values)
        group = []


def _runs(marks: Sequence[bool], start: int, stop: int) -> Iterator[tuple[bool, int, int]]:
    """The maximal runs of equal marks inside ``[start, stop)``."""
    while start < stop:
        end = start + 1
        while end < stop and marks[end] == marks[start]:
            end += 1
        yield marks[start], start, end
        start = end


def _html_token(markup: str, group: Sequence[int], values: Mapping[str, npt.NDArray[np.float64]]) -> str:
    shown = {name: array[group] for name, array in values.items() if not np.isnan(array[group]).any()}
    if not shown:
        return markup
    lines = [f"token {', '.join(map(str, group))}"]
    lines += [f"{name} {', '.join(f'{value:.3f}' for value in numbers)}" for name, numbers in shown.items()]
    means = (f"{shown[name].mean():.4g}" if name in shown else "" for name in values)
    title = "&#10;".join(map(_safe, lines))
    return f'<span class="sg-t" data-v="{",".join(means)}" title="{title}">{markup}</span>'


def html_page(body: str, title: str, *, style: str = "") -> str:
    """A complete page around trusted markup ``body``, with everything that `to_html` needs and no outside resource."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_safe(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>{STYLE}{style}</style>\n</head>\n"
        f"<body>\n{body.translate(_HARMLESS)}\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


STYLE = """
:root {
  --page: #ffffff; --ink: #1d2430; --soft: #59616e; --line: #d8dde5; --panel: #f6f7f9;
  --action: #0b6b3a; --action-panel: #eef8f1; --observation: #8a2a86; --observation-panel: #faf1f9;
  --low: #d95f02; --high: #1b7fc4;
}
@media (prefers-color-scheme: dark) { :root {
  --page: #14171c; --ink: #e4e8ee; --soft: #9aa4b2; --line: #343b46; --panel: #1c2027;
  --action: #6fd49b; --action-panel: #15241c; --observation: #e39be0; --observation-panel: #271a27;
  --low: #f0883e; --high: #58a6ff;
} }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
.sg-transcript { margin: 1.5rem 0; }
.sg-heading { margin: 0 0 .3rem; font-size: 1.05rem; }
.sg-legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin-bottom: .4rem; font-size: .85rem; }
.sg-key::before { content: "■ "; }
.sg-shade { margin-left: auto; color: var(--soft); }
.sg-shade select { font: inherit; color: inherit; background: var(--page); border: 1px solid var(--line); }
.sg-span { border-left: 4px solid; padding: .15rem .7rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .875rem/1.55 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
.sg-prompt { color: var(--soft); } .sg-span.sg-prompt { background: var(--panel); }
.sg-action { color: var(--action); } .sg-span.sg-action { background: var(--action-panel); }
.sg-observation { color: var(--observation); } .sg-span.sg-observation { background: var(--observation-panel); }
.sg-span b { font-weight: 700; }
.sg-t { border-radius: 2px; } .sg-t:hover { outline: 1px solid currentColor; cursor: help; }
@media (scripting: none) { .sg-shade { display: none; } }
@media print { .sg-shade { display: none; } * { print-color-adjust: exact; } }
"""

# Every menu of a page shows the same choice, and numbers are shaded on one scale, so that transcripts can be compared.
_SCRIPT = """
document.addEventListener("change", event => {
  if (!event.target.matches(".sg-shade select")) return;
  const chosen = event.target.value, shaded = [];
  for (const section of document.querySelectorAll(".sg-transcript")) {
    const menu = section.querySelector(".sg-shade select");
    if (!menu) continue;
    const index = [...menu.options].findIndex(option => option.value === chosen);
    menu.selectedIndex = Math.max(index, 0);
    for (const token of section.querySelectorAll(".sg-t")) {
      token.style.background = "";
      const number = parseFloat(token.dataset.v.split(",")[index - 1]);
      if (index > 0 && Number.isFinite(number)) shaded.push([token, number]);
    }
  }
  const scale = shaded.reduce((largest, [, number]) => Math.max(largest, Math.abs(number)), 1e-9);
  for (const [token, number] of shaded) {
    const share = Math.round(45 * Math.abs(number) / scale);
    token.style.background = `color-mix(in srgb, var(${number < 0 ? "--low" : "--high"}) ${share}%, transparent)`;
  }
});
"""
