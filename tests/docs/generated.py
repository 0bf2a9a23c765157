"""What the pages say of options and configuration keys, made from the code.

.venv/bin/python -m tests.docs.generated            print every block
.venv/bin/python -m tests.docs.generated --write    put them into README.md and docs/
"""

import sys
import textwrap
from collections.abc import Iterator

from deploy.documents import Command, commands
from tests.docs import pages
from twctl.config.keys import KEYS
from twctl.config.template import template

COLUMN, WIDTH = 40, 120


def generated() -> dict[str, str]:
    """Every block by name."""
    usage = {f"help {name}": pages.fenced("\n".join(_usage(name, each))) for name, each in commands().items()}
    return usage | {"configuration": pages.fenced(template(KEYS), "toml")}


def _usage(name: str, command: Command) -> Iterator[str]:
    """The command with its arguments, then what each word of it is for."""
    arguments = [word.name for word in command.words if word not in command.options]
    yield " ".join(["twctl", name, *arguments, *["[OPTION...]"] * bool(command.options)])
    yield ""
    for word in command.words:
        left = "  " + " ".join(filter(None, [word.name, word.value if word in command.options else ""]))
        gap = left.ljust(COLUMN) if len(left) < COLUMN else f"{left}  "
        yield from textwrap.wrap(word.help, WIDTH, initial_indent=gap, subsequent_indent=" " * COLUMN)


def main(words: list[str]) -> int:
    """Print the blocks, or write them."""
    made = generated()
    if "--write" in words:
        for page in pages.write("code", made):
            print(page)
        return 0
    for name, text in made.items():
        print(f"== {name}\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
