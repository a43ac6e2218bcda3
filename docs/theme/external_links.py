"""What the site links to outside of itself: listed in external-links.txt, and asked for only on demand.

``CHECK_EXTERNAL_LINKS=1 make docs`` fetches each address once and, as the build is strict, fails if one is gone.
"""

from __future__ import annotations

import logging
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig

log = logging.getLogger("mkdocs.hooks.external_links")
HREF = re.compile(r'<a [^>]*href="(https?://[^"#]+)')
REFUSES = {403, 405, 418, 429}
"""Statuses of servers that know the page but do not talk to programs."""
seen: dict[str, set[str]] = {}


def on_pre_build(**_: Any) -> None:
    """Forget the links of an earlier build."""
    seen.clear()


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Remember where a page links to."""
    for address in HREF.findall(output):
        seen.setdefault(address, set()).add(page.file.src_uri)
    return output


def on_post_build(*, config: MkDocsConfig) -> None:
    """Write the list; fetch what is on it if that was asked for."""
    addresses = sorted(address for address in seen if "://localhost" not in address and "://127." not in address)
    Path(config.site_dir, "external-links.txt").write_text("".join(f"{a}\n" for a in addresses), encoding="utf-8")
    log.info("%d links lead out of the site; external-links.txt lists them", len(addresses))
    if os.environ.get("CHECK_EXTERNAL_LINKS", "0") != "0":
        for address in addresses:
            if problem := fetch(address):
                log.warning("%s (linked from %s): %s", address, ", ".join(sorted(seen[address])), problem)


def fetch(address: str) -> str | None:
    """What is wrong with ``address``, if anything is."""
    request = urllib.request.Request(address, headers={"User-Agent": "search-gym documentation"})
    try:
        with urllib.request.urlopen(request, timeout=30):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code in REFUSES else f"status {error.code}"
    except OSError as error:
        return str(error)
