"""What the documentation's pages hold: fenced blocks, commands, code spans, links, headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"bash", "python", "yaml", "json", "text"}
# A code span that begins like this is a command as well.
COMMAND = re.compile(r"^([A-Z_]+=\S+ )*(python|torchrun|make|pip|sbatch|scripts/\w+\.sh) \S")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    before: str  # the paragraph in front of it, on one line


class MarkdownPage:
    def __init__(self, path: Path) -> None:
        self.path, self.text = path, path.read_text()

    @cached_property
    def blocks(self) -> list[Block]:
        found = []
        for match in FENCE.finditer(self.text):
            before = self.text[: match.start()].removesuffix("<!-- fmt: off -->\n")
            paragraph = before.rstrip("\n").rpartition("\n\n")[2]
            found.append(Block(match[1], match[2], " ".join(paragraph.split())))
        return found

    @cached_property
    def prose(self) -> str:
        """Without the fenced blocks."""
        return FENCE.sub("", self.text)

    @property
    def spans(self) -> list[str]:
        """What stands between back-ticks, on one line each."""
        return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", self.prose)]

    @property
    def commands(self) -> list[str]:
        """Every line of a bash block, continued lines joined, and every code span that is a command."""
        lines = [
            line.strip()
            for block in self.blocks
            if block.language == "bash"
            for line in block.text.replace("\\\n", " ").splitlines()
        ]
        fenced = [line for line in lines if line and not line.startswith("#")]
        return fenced + [span for span in self.spans if COMMAND.match(span)]

    @property
    def links(self) -> list[str]:
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    @property
    def anchors(self) -> set[str]:
        """The headings as GitHub names them in links."""
        titles = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
