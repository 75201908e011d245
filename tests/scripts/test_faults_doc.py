"""The table of faults names tests that there are."""

import re
from pathlib import Path

REPO = Path(__file__).parents[2]


def named_tests() -> list[tuple[str, list[str]]]:
    """(test file, parts of test names) of each row's last column."""
    found = []
    for line in (REPO / "docs/faults.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and "`" in line:
            last = line.strip(" |").rpartition(" | ")[2]
            for part in re.split(r"(?=`\w+/test_)", last):
                names = re.findall(r"`([^`]+)`", part)
                if names:
                    found.append((names[0], names[1:]))
    return found


def test_every_fault_names_tests_that_there_are() -> None:
    rows = named_tests()
    assert len(rows) > 40
    for file, names in rows:
        defined = re.findall(r"^(?:async )?def (test_\w+)", (REPO / "tests" / file).read_text(encoding="utf-8"), re.M)
        assert names, f"{file}: no test is named"
        missing = [name for name in names if not any(name in each for each in defined)]
        assert not missing, f"{file}: {missing}"
