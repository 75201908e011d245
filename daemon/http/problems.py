"""Problems: every refusal as `application/problem+json` (RFC 9457) that names the field, the value and the remedy."""

import datetime as dt
import http
from typing import Any

import msgspec
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"


class ProblemError(Exception):
    """Raised by a route to refuse a request; becomes the response.

    Args:
        status: HTTP status code.
        detail: what happened.
        remedy: what the caller can do.
        field: the parameter, header or part of the path that is to blame.
        value: what it held.
        headers: further response headers.
        members: further members of the problem object.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        remedy: str,
        field: str | None = None,
        value: str | None = None,
        headers: dict[str, str] | None = None,
        members: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.remedy = remedy
        self.field = field
        self.value = value
        self.headers = headers or {}
        self.members = members or {}

    def response(self) -> Response:
        """The problem as a response. Its title is the status's phrase, so `type` is left at `about:blank`."""
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": http.HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "remedy": self.remedy,
        }
        if self.field is not None:
            body["field"] = self.field
        if self.value is not None:
            body["value"] = self.value[:200]
        body |= self.members
        headers = {"Cache-Control": "no-store"} | self.headers
        return Response(msgspec.json.encode(body), self.status, headers, MEDIA_TYPE)


def rfc3339(seconds: float | None) -> str | None:
    """A time in epoch seconds as RFC 3339 in UTC, to the millisecond; None stays None."""
    if seconds is None:
        return None
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
