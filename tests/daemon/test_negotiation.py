"""Which media type a header `Accept` gets (RFC 9110, 12.5.1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.daemon.http.negotiation import negotiate

OFFERS = ("application/json", "text/csv", "text/markdown")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/*", "text/csv"),
        ("text/csv", "text/csv"),
        ("TEXT/CSV", "text/csv"),
        ("text/csv;q=0.5, text/markdown", "text/markdown"),
        ("text/csv;q=0.5, application/json;q=0.5", "application/json"),
        ("text/csv;q=0.8, */*;q=0.1", "text/csv"),
        ("text/*;q=0.9, text/csv;q=0.1, application/json;q=0.5", "text/markdown"),
        ("*/*, application/json;q=0", "text/csv"),
        ("text/csv ; header=present ; q=1.000", "text/csv"),
        # as browsers send it
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", "application/json"),
        ("text/html", None),
        ("application/json;q=0, text/*;q=0", None),
        ("*/*;q=0", None),
        # what is no range is passed over
        ("text/csv, nonsense, */json, text/, ;q=1, application/json;q=2", "text/csv"),
        ("nonsense", "application/json"),
    ],
)
def test_the_form_that_is_wanted_most_is_given(accept: str, expected: str | None) -> None:
    assert negotiate(accept, OFFERS) == expected


@given(st.text(alphabet="abjt/*;,q=.0159 csvexjsonmarkdown\u00e9", max_size=80))
def test_no_header_is_an_error_and_nothing_else_is_ever_given(accept: str) -> None:
    assert negotiate(accept, OFFERS) in (*OFFERS, None)
