"""AccessPolicy: who gets in, by which proof, and from which pages."""

import ipaddress
import math
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import parse_qsl, urlencode, urlsplit

import structlog
from starlette.responses import Response
from starlette.types import Scope

from ckptd.catalog.roots import Root

from ..setting_types import Access
from ..settings import Settings
from ..tokens import Right, TokenFiles, Tokens, kept_tokens, readable_by_others
from .guesses import PEER, PEER_UID, Guesses, peer_of
from .problems import ProblemError

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK_NAMES = frozenset({"localhost", "ip6-localhost", "localhost.localdomain"})
_PUBLIC = frozenset({"/health", "/client.js", "/favicon.svg", "/sign-in.css"})
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")

_JOINED = frozenset({b"cookie", b"host"})
_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[^][:;, ]+))(?::[0-9]*)?")
"""A name or an address and a port (RFC 9110, 7.2)."""

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="ckptd"'}
"""Of every 401 (RFC 9110, 15.5.2)."""
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]


class AccessPolicy:
    """Decides for each request whether it is let in. The tokens are read once, and again by `reload`."""

    def __init__(
        self,
        token: str | None,
        *,
        read_token: str | None = None,
        hosts: frozenset[str] | None = None,
        origins: Iterable[str] = (),
        token_files: TokenFiles | None = None,
        warnings: Iterable[str] = (),
        trust_unix_socket: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        token: what a caller must know to read and to ask for changes; None lets everyone in who reaches the socket.
        read_token: what a caller must know to read alone.
        hosts: names that a `Host` header may carry; None for any.
        origins: of pages elsewhere that may read.
        token_files: where the tokens were read from, for `reload`.
        warnings: for the operator.
        trust_unix_socket: who can open the socket needs no other proof to read, and its owner and root none at all.
        clock: seconds, by which wrong tokens are forgotten.
        """
        self.hosts = hosts
        self.origins = frozenset(origins)
        self.token_files = token_files
        self.warnings = tuple(warnings)
        self.trust_unix_socket = trust_unix_socket
        self._tokens = None if token is None else Tokens(token, read_token)
        self._guesses = Guesses()
        self._clock = clock

    @classmethod
    def from_settings(
        cls, settings: Settings, roots: Iterable[Root], bound: Iterable[str] | None = None
    ) -> "AccessPolicy":
        """The policy that the settings ask for; a token is generated where one is needed and none is given.

        Args:
            settings: what the operator wants.
            roots: what is to be read.
            bound: addresses of the TCP sockets that are really listened on, where they may differ from the
                settings (handed over by systemd); by default the settings' `host`.

        Raises:
            AccessError: the token cannot be read or kept. The message says what to do.
        """
        if bound is None:
            bound = [] if settings.uds is not None else [settings.host]
        loopback = all(map(is_loopback, bound))
        warnings: list[str] = []
        if settings.allow_anonymous and not loopback:
            warnings.append("everyone who reaches this machine's address may read the catalog (allow_anonymous)")
        for name, given in (("token_file", settings.token_file), ("read_token_file", settings.read_token_file)):
            if given is not None and readable_by_others(given):
                warnings.append(f"{name}: {given} can be read by other users; chmod 600 it")
        hosts = None
        if loopback:
            named = (urlsplit(origin).hostname for origin in settings.cors_origins)
            hosts = _LOOPBACK_NAMES | {settings.host.lower()} | {name for name in named if name}
        tokens, files = None, None
        if not _is_open(settings, roots, loopback=loopback):
            tokens, files = kept_tokens(settings.state_dir, settings.token_file, settings.read_token_file)
        policy = cls(None, hosts=hosts, origins=settings.cors_origins, token_files=files, warnings=warnings)
        policy._tokens = tokens
        return policy

    @property
    def is_open(self) -> bool:
        """No token is needed to read."""
        return self._tokens is None

    @property
    def cookie_name(self) -> str:
        """Of the cookie that keeps a browser signed in; empty where nobody has to."""
        return "" if self._tokens is None else self._tokens.cookie_name

    def link(self, url: str) -> str:
        """`url` of the page, with the token that signs a browser in."""
        return url if self._tokens is None else f"{url.rstrip('/')}/?{urlencode({'token': self._tokens.full})}"

    def announce(self, url: str, log: structlog.stdlib.BoundLogger) -> None:
        """Tell the operator how readers get in. The link with the token goes to a terminal, never to a log file."""
        for warning in self.warnings:
            log.warning(warning)
        if self.is_open:
            log.info("open to readers", url=url)
        elif sys.stderr.isatty():
            log.info("readers need the token; open this link", link=self.link(url))
        else:
            log.info("readers need the token; `ckptd token` prints it", url=url)

    def reload(self) -> bool:
        """Read the tokens again (SIGHUP); cookies made from old ones end.

        Returns:
            Whether they are others now: streams that were opened with the old ones are to be ended.

        Raises:
            AccessError: one cannot be read; the old ones stay in force.
        """
        if self.token_files is None:
            return False
        before, self._tokens = self._tokens, self.token_files.read()
        return before != self._tokens

    # ---- one request ---------------------------------------------------------------------------------------

    def check(self, scope: Scope, path: str) -> None:
        """Let a request in, or refuse it.

        Raises:
            ProblemError: with status 421, 429, 403 or 401.
        """
        if _is_public(path):
            return
        headers = _headers(scope)
        changes = scope["method"] not in _SAFE_METHODS
        if not (self.trust_unix_socket and is_unix_socket(scope)):
            self._check_host(headers)
            if changes:
                self._check_origin(scope, headers)
        right = self.right_of(scope)
        if right is not Right.CHANGE and self._is_guess(headers):
            self._note_guess(scope)
        if right is Right.READ and changes:
            raise ProblemError(
                403,
                "this token, or this user of the socket, may read only",
                remedy="send the token that `ckptd token` prints, or run the command as the daemon's user or root",
                field="Authorization",
            )
        if right is Right.NONE:
            raise ProblemError(
                401,
                "this catalog is read with a token",
                remedy="send `Authorization: Bearer <token>`, or open /?token=<token> in a browser; "
                "`ckptd token` prints it",
                field="Authorization",
                headers=_CHALLENGE,
            )

    def right_of(self, scope: Scope) -> Right:
        """What the caller of a request may do, by its socket, its token or its cookie."""
        right = Right.CHANGE if self._tokens is None else Right.NONE
        if self.trust_unix_socket and is_unix_socket(scope):
            # The mode of the socket says who may come; who may change something, the kernel does.
            right = max(right, Right.CHANGE if scope.get(PEER_UID) in (0, os.geteuid()) else Right.READ)
        if self._tokens is None or right is Right.CHANGE:
            return right
        return max(right, self._right_by_proof(self._tokens, _headers(scope)))

    def sign_in(self, scope: Scope, path: str) -> Response | None:
        """The answer to a visit by the link with the token: a cookie, and the address without the token.

        None if this is no such visit.

        Raises:
            ProblemError: 401 for a wrong token, 429 for one too many, 421 for a wrong host.
        """
        is_visit = path == "/" and scope["method"] in ("GET", "HEAD") and b"token=" in scope["query_string"]
        if self._tokens is None or not is_visit:
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        given = [value for name, value in query if name == "token"]
        if not given:
            return None
        self._check_host(_headers(scope))
        cookie = self._tokens.cookie_for(given[0])
        if cookie is None:
            self._note_guess(scope)
            raise ProblemError(
                401,
                "the token is wrong",
                remedy="take the one that `ckptd token` prints",
                field="token",
                headers=_CHALLENGE,
            )
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        home = scope.get("root_path", "") + "/"
        response = Response(status_code=303, headers={"Location": f"{home}?{rest}" if rest else home})
        response.headers["Cache-Control"] = "no-store"
        response.set_cookie(
            self._tokens.cookie_name,
            cookie,
            path=home,
            httponly=True,
            # Not strict: with it, whoever follows a link to the page from a chat or a wiki would be asked to sign in
            # again. What changes anything is a POST, which such a cookie does not go with, and `_check_origin`.
            samesite="lax",
            secure=scope.get("scheme") == "https",
            max_age=365 * 86400,
        )
        return response

    def response_headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Headers for every answer; for pages of the named origins, the permission to read it."""
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        if not self.origins or origin is None or origin.decode("latin-1") not in self.origins:
            return SECURITY_HEADERS
        allowed = [header for header in SECURITY_HEADERS if header[0] != b"cross-origin-resource-policy"]
        return [
            *allowed,
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-headers", b"authorization, last-event-id, if-none-match"),
            (b"access-control-expose-headers", b"etag, x-complete-as-of"),
            (b"vary", b"Origin"),
        ]

    def is_preflight(self, scope: Scope) -> bool:
        """A browser asks on behalf of a page of a named origin whether it may send a request."""
        if scope["method"] != "OPTIONS" or not self.origins:
            return False
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        return origin in self.origins and b"access-control-request-method" in headers

    def _check_host(self, headers: dict[bytes, str]) -> None:
        given = headers.get(b"host", "")
        name = _host_name(given)
        if self.hosts is None or name in self.hosts or is_loopback(name):
            return
        raise ProblemError(
            421,
            "the request names a host that this catalog does not answer for",
            remedy="use localhost, or name the page's origin in cors_origins",
            field="Host",
            value=given,
        )

    def _check_origin(self, scope: Scope, headers: dict[bytes, str]) -> None:
        site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
        if origin in self.origins:
            return
        own = f"{scope.get('scheme', 'http')}://{headers.get(b'host', '')}"
        if site in (None, "same-origin", "none") and origin in (None, own):
            return
        raise ProblemError(
            403,
            "a page of another origin asks for a change",
            remedy="ask from the catalog's own page, or without a browser",
            field="Origin",
            value=origin or site,
        )

    def _is_guess(self, headers: dict[bytes, str]) -> bool:
        """Whether a token was sent, and nothing that was sent is right. A cookie alone is none: old ones are usual."""
        if self._tokens is None or _bearer(headers) is None:
            return False
        return self._right_by_proof(self._tokens, headers) is Right.NONE

    def _note_guess(self, scope: Scope) -> None:
        """Count a wrong token.

        Raises:
            ProblemError: 429, when its peer has sent too many.
        """
        wait_s = self._guesses.wait_s(peer_of(scope), self._clock())
        if not wait_s:
            return
        # Each further guess on our own sockets has to connect first; what another server does with its connections
        # is not ours to say, and no header of HTTP/2.
        ended = {"Connection": "close"} if PEER in scope or PEER_UID in scope else {}
        raise ProblemError(
            429,
            "too many wrong tokens came from there",
            remedy="send the token that `ckptd token` prints, which is let in at once, or try again later",
            field="token" if b"token=" in scope["query_string"] else "Authorization",
            headers={"Retry-After": str(math.ceil(wait_s)), **ended},
        )

    def _right_by_proof(self, tokens: Tokens, headers: dict[bytes, str]) -> Right:
        given = _bearer(headers)
        by_bearer = Right.NONE if given is None else tokens.right_of(given)
        # All of them: what another program on this host set under our name must not hide ours.
        cookies = set(_cookies(headers.get(b"cookie", ""), tokens.cookie_name))
        return max(by_bearer, *map(tokens.right_of_cookie, cookies), Right.NONE)


def is_loopback(host: str) -> bool:
    """Whether an address or name can only be reached from this machine."""
    if host.lower() in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_public(path: str) -> bool:
    """Whether what lies at a path is no secret: that the service lives, and the page's own code."""
    return path in _PUBLIC or path.startswith("/assets/")


def is_unix_socket(scope: Scope) -> bool:
    """Whether a request came over our Unix socket, straight from its client.

    A reverse proxy in front of the socket speaks for others; what it forwards is judged like any request.
    """
    server = scope.get("server")
    straight = not any(name in _FORWARDED for name, _ in scope["headers"])
    return server is not None and server[1] is None and straight


def readable_by_everyone(path: bytes) -> bool:
    """Whether every user of the machine can list `path` by its permission bits: o+rx there, o+x on the way."""
    try:
        modes = [os.stat(path).st_mode]
        while path != os.path.dirname(path):
            path = os.path.dirname(path)
            modes.append(os.stat(path).st_mode)
    except OSError:
        return False
    return modes[0] & stat.S_IROTH != 0 and all(mode & stat.S_IXOTH for mode in modes)


def _is_open(settings: Settings, roots: Iterable[Root], *, loopback: bool) -> bool:
    if settings.allow_anonymous:
        return True
    is_given = settings.token_file is not None or settings.read_token_file is not None
    if settings.access is Access.TOKEN or is_given or not loopback:
        return False
    return all(readable_by_everyone(root.path) for root in roots)


def _headers(scope: Scope) -> dict[bytes, str]:
    """The headers by name. Several cookies are one (RFC 9113, 8.2.3), and so are several hosts, which is no host."""
    headers: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        text = value.decode("latin-1")
        headers[name] = f"{headers[name]}; {text}" if name in _JOINED and name in headers else text
    return headers


def _cookies(header: str, wanted: str) -> Iterator[str]:
    """The values of a cookie's name.

    By hand: `http.cookies` takes the square of the length (CVE-2024-7592), and drops all of them because of a single
    one that is not as it thinks. Cookies are shared by all ports of a host, so some are not.
    """
    for cookie in header.split(";"):
        name, _, value = cookie.partition("=")
        if name.strip() == wanted:
            yield value.strip()


def _bearer(headers: dict[bytes, str]) -> str | None:
    """The token that a request carries; None without one."""
    scheme, _, given = headers.get(b"authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else None


def _host_name(given: str) -> str:
    """The name in a `Host` header, without its port; empty where it is none."""
    found = _HOST.fullmatch(given)
    return "" if found is None else (found["address"] or found["name"] or "").lower()
