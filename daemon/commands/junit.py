"""JUnit XML: one test case for each checkpoint, for the servers that show test results.

The elements are those that all readers share (the schema of Jenkins' xUnit plugin, `junit-10.xsd`): `testsuites`,
`testsuite`, `testcase`, `failure`, `error`, `system-out`.
"""

import os
import re
import time
from collections.abc import Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET

from ckptd.catalog.description import Description
from ckptd.validators.findings import Finding, Severity

# XML 1.0 section 2.2, production [2] Char: what no document may hold, not even as a character reference.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SUITE = "ckptd validate"


class Case(NamedTuple):
    """One checkpoint of the report."""

    path: str
    """As shown to people."""
    description: Description


def render_junit(
    cases: Sequence[Case], problems: Sequence[str], *, fail_on: Severity, started_at: float, took_s: float
) -> bytes:
    """The report as a UTF-8 document.

    Args:
        cases: in the order of the report.
        problems: what could not be looked at; each is a test case that ended in an error.
        fail_on: the least severity that makes a test case fail.
        started_at: epoch seconds.
        took_s: of the whole run.
    """
    suite = ET.Element("testsuite", name=_SUITE)
    failures = sum(_add_case(suite, case, fail_on) for case in cases)
    for problem in problems:
        where = problem.partition(": ")[0]
        element = _case(suite, where)
        _text(ET.SubElement(element, "error", type="unreachable", message=_clean(problem)), problem)
    counts = {
        "tests": str(len(cases) + len(problems)),
        "failures": str(failures),
        "errors": str(len(problems)),
        "skipped": "0",
        "time": f"{took_s:.3f}",
    }
    suite.attrib |= counts | {"timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(started_at))}
    total = {name: value for name, value in counts.items() if name != "skipped"}
    document = ET.Element("testsuites", {"name": _SUITE} | total)
    document.append(suite)
    ET.indent(document)
    return bytes(ET.tostring(document, encoding="utf-8", xml_declaration=True)) + b"\n"


def _add_case(suite: ET.Element, case: Case, fail_on: Severity) -> bool:
    """Add one checkpoint; whether it failed."""
    element = _case(suite, case.path)
    fatal = {Severity.ERROR, fail_on}
    failing = [found for found in case.description.findings if found.severity in fatal]
    others = [found for found in case.description.findings if found.severity not in fatal]
    if failing:
        # One element, whose text has them all: many readers show the first only.
        first = failing[0]
        failure = ET.SubElement(element, "failure", type=first.code, message=_clean(first.message))
        _text(failure, "\n".join(map(_told, failing)))
    if others:
        _text(ET.SubElement(element, "system-out"), "\n".join(map(_told, others)))
    return bool(failing)


def _case(suite: ET.Element, path: str) -> ET.Element:
    directory, name = os.path.split(path)
    return ET.SubElement(suite, "testcase", classname=_clean(directory or "."), name=_clean(name))


def _told(found: Finding) -> str:
    return f"{found.severity}: {found.code}: {found.message}\n  {found.remedy}"


def _text(element: ET.Element, text: str) -> None:
    element.text = _clean(text)


def _clean(text: str) -> str:
    """`text` with what XML forbids (control characters, lone surrogates) as escapes."""
    return _FORBIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)
