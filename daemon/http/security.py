"""AccessPolicy: who gets in, by which proof, and from which pages."""

import hashlib
import hmac
import ipaddress
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

import structlog
from starlette.responses import Response
from starlette.types import Scope

from ckptd.catalog.roots import Root

from ..settings import Access, Settings
from .problems import ProblemError

TOKEN_NAME = "token"  # noqa: S105 - the name of a file
"""In the state directory, mode 0600."""
_TOKEN = re.compile(r"[!-~]{16,512}")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_LOOPBACK_NAMES = frozenset({"localhost", "ip6-localhost", "localhost.localdomain"})
_PUBLIC = frozenset({"/health", "/client.js", "/favicon.svg", "/sign-in.css"})
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="ckptd"'}
"""Of every 401 (RFC 9110, 15.5.2)."""
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]


class AccessError(Exception):
    """Raised when no safe way to let people in could be set up; nothing may be bound then."""


class AccessPolicy:
    """Decides for each request whether it is let in. Pure but for `reload`: the token is read once."""

    def __init__(
        self,
        token: str | None,
        *,
        hosts: frozenset[str] | None = None,
        origins: Iterable[str] = (),
        token_path: str | None = None,
        warnings: Iterable[str] = (),
        trust_unix_socket: bool = True,
    ) -> None:
        """Args:
        token: what a caller must know; None lets everyone read who reaches the socket.
        hosts: names that a `Host` header may carry; None for any.
        origins: of pages elsewhere that may read.
        token_path: where the token was read from, for `reload`.
        warnings: for the operator.
        trust_unix_socket: who can open the socket needs no other proof.
        """
        self.hosts = hosts
        self.origins = frozenset(origins)
        self.token_path = token_path
        self.warnings = tuple(warnings)
        self.trust_unix_socket = trust_unix_socket
        self._use(token)

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
        token_path = None if _is_open(settings, roots, loopback=loopback) else _token_path(settings)
        warnings: list[str] = []
        if settings.allow_anonymous and not loopback:
            warnings.append("everyone who reaches this machine's address may read the catalog (allow_anonymous)")
        if token_path is not None and settings.token_file is not None and _readable_by_others(token_path):
            warnings.append(f"token_file: {token_path} can be read by other users; chmod 600 it")
        hosts = None
        if loopback:
            named = (urlsplit(origin).hostname for origin in settings.cors_origins)
            hosts = _LOOPBACK_NAMES | {settings.host.lower()} | {name for name in named if name}
        token = None
        if token_path is not None:
            token = read_token(token_path) if settings.token_file else keep_token(token_path)
        return cls(token, hosts=hosts, origins=settings.cors_origins, token_path=token_path, warnings=warnings)

    @property
    def is_open(self) -> bool:
        """No token is needed to read."""
        return self._token is None

    @property
    def cookie_name(self) -> str:
        """Of the cookie that keeps a browser signed in."""
        return self._cookie_name

    def link(self, url: str) -> str:
        """`url` of the page, with the token that signs a browser in."""
        return url if self._token is None else f"{url.rstrip('/')}/?{urlencode({'token': self._token})}"

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

    def reload(self) -> None:
        """Read the token again (SIGHUP); cookies made from the old one end.

        Raises:
            AccessError: it cannot be read; the old one stays in force.
        """
        if self.token_path is not None:
            self._use(read_token(self.token_path))

    # ---- one request ---------------------------------------------------------------------------------------

    def check(self, scope: Scope, path: str) -> None:
        """Let a request in, or refuse it.

        Raises:
            ProblemError: with status 421, 403 or 401.
        """
        if _is_public(path) or (self.trust_unix_socket and is_unix_socket(scope)):
            return  # the socket lies in a directory of the owner's
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        self._check_host(headers)
        if scope["method"] not in _SAFE_METHODS:
            self._check_origin(scope, headers)
        if self._token is not None and not self._proved(headers):
            raise ProblemError(
                401,
                "this catalog is read with a token",
                remedy="send `Authorization: Bearer <token>`, or open /?token=<token> in a browser; "
                "`ckptd token` prints it",
                field="Authorization",
                headers=_CHALLENGE,
            )

    def sign_in(self, scope: Scope, path: str) -> Response | None:
        """The answer to a visit by the link with the token: a cookie, and the address without the token.

        None if this is no such visit.

        Raises:
            ProblemError: 401 for a wrong token, 421 for a wrong host.
        """
        is_visit = path == "/" and scope["method"] in ("GET", "HEAD") and b"token=" in scope["query_string"]
        if self._token is None or not is_visit:
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"))
        given = [value for name, value in query if name == "token"]
        if not given:
            return None
        self._check_host({name: value.decode("latin-1") for name, value in scope["headers"]})
        if not _equal(given[0], self._token):
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
            self._cookie_name,
            self._cookie_value,
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

    def _use(self, token: str | None) -> None:
        self._token = token
        # Cookies are shared by all ports of a host: the name keeps two daemons apart, and the value is derived,
        # so that the token itself is in no cookie jar.
        secret = (token or "").encode()
        self._cookie_name = "ckptd_" + hmac.digest(secret, b"cookie name", hashlib.sha256).hex()[:8]
        self._cookie_value = hmac.digest(secret, b"cookie value", hashlib.sha256).hex()

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

    def _proved(self, headers: dict[bytes, str]) -> bool:
        assert self._token is not None
        scheme, _, given = headers.get(b"authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(given.strip(), self._token):
            return True
        try:
            cookies = SimpleCookie(headers.get(b"cookie", ""))
        except CookieError:
            return False
        morsel = cookies.get(self._cookie_name)
        return morsel is not None and _equal(morsel.value, self._cookie_value)


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


def keep_token(path: str) -> str:
    """The token kept at `path`, mode 0600; generated if there is none.

    Raises:
        AccessError: it can be neither read nor written.
    """
    try:
        if os.path.lexists(path):
            os.chmod(path, 0o600, follow_symlinks=False) if _readable_by_others(path) else None
            return read_token(path)
        token = secrets.token_urlsafe(32)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        temporary = f"{path}.{secrets.token_hex(4)}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="ascii") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except OSError as error:
        raise AccessError(
            f"state_dir: the token cannot be kept in {path} ({error.strerror}); make it writable"
        ) from error
    return token


def read_token(path: str) -> str:
    """The token in the file `path`.

    Raises:
        AccessError: the file cannot be read, or does not hold 16 to 512 printable characters on one line.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(4096).strip().decode("ascii", "replace")
    except OSError as error:
        raise AccessError(
            f"the token cannot be read from {path} ({error.strerror}); name a readable token_file"
        ) from error
    if not _TOKEN.fullmatch(text):
        raise AccessError(
            f"{path} holds no token: write one line of 16 to 512 printable characters, or delete the file"
        )
    return text


def _is_open(settings: Settings, roots: Iterable[Root], *, loopback: bool) -> bool:
    if settings.allow_anonymous:
        return True
    if settings.access is Access.TOKEN or settings.token_file is not None or not loopback:
        return False
    return all(readable_by_everyone(root.path) for root in roots)


def _token_path(settings: Settings) -> str:
    return settings.token_file or os.path.join(settings.state_dir, TOKEN_NAME)


def _readable_by_others(path: str) -> bool:
    try:
        return os.stat(path).st_mode & 0o077 != 0
    except OSError:
        return False  # reading it says what is wrong


def _host_name(given: str) -> str:
    """The name in a `Host` header, without its port."""
    if given.startswith("["):
        return given[1:].partition("]")[0].lower()
    return given.partition(":")[0].lower()


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())
