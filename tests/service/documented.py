"""Blocks of code of the documentation, for tests that run them."""

import pathlib
import re

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def block(document: str, heading: str, language: str) -> str:
    """The first block of a language beneath a heading of a document."""
    text = (DOCS / document).read_text()
    _, _, section = text.partition(f"\n{heading}\n")
    assert section, f"{document} has no heading {heading!r}"
    section = re.split(r"^#{1,4} (?=[A-Z])", re.sub(r"^# ", "\\# ", section, flags=re.MULTILINE), flags=re.MULTILINE)[0]
    found = re.search(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found, f"{document}, {heading!r}: no block of {language}"
    return found[1].replace("\\# ", "# ")
