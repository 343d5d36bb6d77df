"""A hook of MkDocs: warn of pages that load something from elsewhere; a strict build then fails."""

from __future__ import annotations

import logging
from html.parser import HTMLParser
from typing import Any

log = logging.getLogger("mkdocs.hooks.privacy")

_LOADS = {"src", "srcset", "poster", "data"}
_LOADING_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch"}


class _Loads(HTMLParser):
    """Collects addresses that a browser asks for when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        addresses = [values[name] for name in _LOADS & values.keys()]
        if tag == "link" and _LOADING_LINKS & set(values.get("rel", "").split()):
            addresses.append(values.get("href", ""))
        self.found += [address for address in addresses if address.startswith(("http", "//"))]


def loads(html: str) -> list[str]:
    """Addresses outside the site that a page loads something from; links to them are none."""
    parser = _Loads()
    parser.feed(html)
    return parser.found


def on_post_page(output: str, /, *, page: Any, config: Any) -> str:
    """Look through a finished page."""
    for address in loads(output):
        log.warning("%s loads %s", page.file.src_uri, address)
    return output
