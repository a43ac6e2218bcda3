"""Equations become pictures while the site is built: no script, no font and no network is needed to see them."""

from __future__ import annotations

import html
import re
from typing import Any

import ziamath

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', flags=re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', flags=re.DOTALL)
SIZE = 16.0
"""Pixels of an em in which equations are drawn; pages scale them to their own text."""
SCALE = 1.1
"""How much larger the font of equations has to be to look as large as the text's."""


def svg(latex: str, *, inline: bool) -> str:
    """``latex`` as an SVG that stands on the line of the text around it, and says its source to who cannot see it."""
    math = ziamath.Latex(latex.strip(), size=SIZE, color="currentColor", inline=inline)
    width, height, depth = (SCALE * length / SIZE for length in (*math.getsize(), math.getyofst()))
    style = f"width:{width:.3f}em;height:{height:.3f}em;vertical-align:{depth:.3f}em"
    label = html.escape(latex.strip(), quote=True)
    return math.svg().replace("<svg ", f'<svg class="math" role="img" aria-label="{label}" style="{style}" ', 1)


def on_page_content(content: str, **_: Any) -> str:
    """The page with a picture for each equation."""
    content = DISPLAY.sub(
        lambda found: f'<div class="equation">{svg(html.unescape(found[1]), inline=False)}</div>', content
    )
    return INLINE.sub(lambda found: svg(html.unescape(found[1]), inline=True), content)
