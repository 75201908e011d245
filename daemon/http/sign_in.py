"""The sign-in page: what a browser gets at `/` that has not proved it may read. Works without script."""

import html
from urllib.parse import parse_qsl

from starlette.responses import Response
from starlette.types import Scope

from .negotiation import negotiate
from .page import HTML
from .page_files import STYLE_OF_SIGN_IN, PageFiles
from .problems import MEDIA_TYPE, ProblemError

_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
MAX_KEPT = 50
"""Parameters of the address that survive signing in: the page's own are a dozen."""
_PAGE = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <meta name="color-scheme" content="light dark">
    <title>Sign in · ckptd</title>
{links}  </head>
  <body>
    <main>
      <h1>ckptd</h1>
      <p>This catalog of checkpoints is read with a token.</p>
{problem}      <form method="get" action="./">
{fields}        <label for="token">Token</label>
        <input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
        <button type="submit">Sign in</button>
      </form>
      <p>
        On the machine that serves it, <code>ckptd token</code> prints the token. Started from a terminal,
        <code>ckptd serve</code> also prints a link that signs you in. This browser then stays signed in.
      </p>
    </main>
  </body>
</html>
"""
_LINKS = """    <link rel="icon" type="image/svg+xml" href="./favicon.svg">
    <link rel="stylesheet" href="./sign-in.css">
"""


def sign_in_page(problem: ProblemError, scope: Scope, path: str, files: PageFiles | None) -> Response | None:
    """The page in place of a refusal, for a person at `/`; None where the problem itself is the better answer.

    The form sends the token as the link does, by GET to the page's own address: it changes nothing but this
    browser's cookie, and whoever lured somebody into sending it would have to know the token.

    Args:
        problem: why the request was refused.
        scope: the request.
        path: beneath where the application is mounted.
        files: of the page, for its style; without them it is plain.
    """
    if problem.status not in (401, 429) or path != "/" or scope["method"] not in ("GET", "HEAD"):
        return None
    accept = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"), "")
    if negotiate(accept, (MEDIA_TYPE, "text/html")) != "text/html":
        return None
    styled = files is not None and files.get(STYLE_OF_SIGN_IN) is not None
    body = _PAGE.format(
        links=_LINKS if styled else "",
        problem=f'      <p role="alert">{_reason(problem)}</p>\n' if problem.field == "token" else "",
        fields="".join(map(_field, _kept(scope))),
    )
    headers = {"Cache-Control": "no-store", "Vary": "Accept, Authorization, Cookie", "Content-Security-Policy": _POLICY}
    return Response(body, problem.status, headers | problem.headers | {"Content-Type": HTML})


def _reason(problem: ProblemError) -> str:
    return html.escape(f"{problem.detail[:1].upper()}{problem.detail[1:]}: {problem.remedy}.")


def _kept(scope: Scope) -> list[tuple[str, str]]:
    """What the address says of the page's state, so that a shared link still leads to what it showed."""
    given = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    return [(name, value) for name, value in given if name != "token"][:MAX_KEPT]


def _field(parameter: tuple[str, str]) -> str:
    name, value = map(html.escape, parameter)
    return f'        <input type="hidden" name="{name}" value="{value}">\n'
