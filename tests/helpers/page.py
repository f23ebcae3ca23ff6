"""A report page as a browser would see it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


class Page(HTMLParser):
    """What a browser would see: texts by tag, every address, the grids' JSON."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.grids: list[dict[str, Any]] = []
        self.classes: list[str] = []
        self._json = False
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.classes.append(found.get("class") or "")
        self.addresses += [found[name] or "" for name in ("src", "href") if name in found]
        self._json = tag == "script" and found.get("type") == "application/json"

    def handle_data(self, data: str) -> None:
        if self._json:
            self.grids.append(json.loads(data))
        elif data.strip():
            self.text.append(data.strip())

    def handle_endtag(self, tag: str) -> None:
        self._json = False
