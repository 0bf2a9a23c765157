"""The pages: links that lead somewhere, plain words, and a README that can be read in one go."""

import re
from pathlib import Path

import pytest

from tests import ROOT
from tests.bench.__main__ import NAMES as NAMES_OF_BENCHMARKS
from tests.docs.pages import PAGES, README, anchors, blocks, prose

LINES = 200  # of the README
BANNED = (
    r"\blest\b",
    "nobody else's knowledge",
    "held against",
    "for which there is",
    r"\bbirths?\b",
    r"\bborn\b",
    r"\bmissed\b",
    r"\bshrinks?\b",
    "no Grafana has shown it yet",
)
# What must not be in a public repository: folders of the machine that it was written on.
PRIVATE = ("/" + "work/", "/" + "root/", "/" + "home/")
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def test_the_readme_is_short() -> None:
    """At most 200 lines, the outputs among them."""
    assert len(README.read_text().splitlines()) <= LINES


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    """To a file of the repository, and to a heading that is there."""
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("name", NAMES)
def test_the_words_are_those_of_the_project(name: str) -> None:
    """None of the phrases that were banned, but as names in code; and no path of somebody's machine."""
    text = (ROOT / name).read_text()
    words = re.sub(r"`[^`\n]*`", "", prose(ROOT / name))
    assert [] == [phrase for phrase in BANNED if re.search(phrase, words, re.IGNORECASE)]
    assert [] == [path for path in PRIVATE if path in text]


@pytest.mark.parametrize("name", NAMES)
def test_files_that_a_page_names_are_there(name: str) -> None:
    """Of the repository's own folders."""
    named = re.findall(r"(?<![\w/.:])(?:bpf|twctl|tests|deploy|vagrant)/[\w./-]*\w", prose(ROOT / name))
    assert [] == [each for each in named if not (ROOT / each).exists()]


def test_every_page_can_be_found() -> None:
    """From docs/README.md; and the README leads to each, too."""
    for index in (README, ROOT / "docs/README.md"):
        linked = {
            (index.parent / link.partition("#")[0]).resolve()
            for link in re.findall(r"\]\(([^)]+)\)", index.read_text())
        }
        wanted: set[Path] = {page.resolve() for page in ROOT.glob("docs/*.md")} - {ROOT / "docs/README.md"}
        assert set() == wanted - linked, index


def test_each_benchmark_has_its_figures() -> None:
    """A block on docs/benchmarks.md, and no other has one."""
    assert sorted(NAMES_OF_BENCHMARKS) == sorted(name for _, name, _ in blocks("figures"))


def test_no_block_that_the_program_writes_is_empty() -> None:
    """Each has a text; of the kinds there are."""
    every = [(name, text) for kind in ("output", "code") for _, name, text in blocks(kind)]
    assert every
    assert [] == [name for name, text in every if not text.startswith("```")]
    figures = [text for _, _, text in blocks("figures")]
    assert [] == [text for text in figures if "| what | measured |" not in text]
    cells = [text for _, _, text in blocks("cells")]
    assert [] == [text for text in cells if "| kernel | of |" not in text]
    opened = sum(len(re.findall(r"^<!-- \w+: ", page.read_text(), re.MULTILINE)) for page in PAGES)
    assert opened == len(every) + len(figures) + len(cells)
