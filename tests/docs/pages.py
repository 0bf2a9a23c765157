"""The pages as text: which there are, their headings, and the blocks that the program itself writes.

A written block stands between two comments: `<!-- output: status -->` and `<!-- end -->`. Kinds: `output` is what a
command printed (examples.py), `code` follows from the code (generated.py).
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests import ROOT

README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
_BLOCK = re.compile(r"(<!-- (?P<kind>\w+): (?P<name>[\w -]+) -->\n)(?P<text>.*?)(<!-- end -->)", re.DOTALL)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def blocks(kind: str) -> Iterator[tuple[Path, str, str]]:
    """Page, name and text of each block of a kind."""
    for page in PAGES:
        for match in _BLOCK.finditer(page.read_text()):
            if match["kind"] == kind:
                yield page, match["name"], match["text"].rstrip("\n")


def write(kind: str, texts: Mapping[str, str]) -> Iterator[Path]:
    """Put these texts in place of the blocks of their names; yields the pages that changed."""

    def fresh(match: re.Match[str]) -> str:
        wanted = match["kind"] == kind and match["name"] in texts
        return f"{match[1]}{texts[match['name']]}\n{match[5]}" if wanted else match[0]

    for page in PAGES:
        before = page.read_text()
        after = _BLOCK.sub(fresh, before)
        if after != before:
            page.write_text(after)
            yield page


def fenced(text: str, language: str = "") -> str:
    """As a code block."""
    return f"```{language}\n{text.rstrip()}\n```"


def anchors(page: Path) -> set[str]:
    """What a link may name after `#`: headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
