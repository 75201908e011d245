"""Cookies and `Host` as clients really send them, and as hostile ones do."""

import pytest

from ckptd.daemon.http import AccessPolicy
from ckptd.daemon.http.problems import ProblemError
from ckptd.daemon.tokens import Right, Tokens

TOKEN = "a-token-of-32-characters-or-more"
TOKENS = Tokens(TOKEN)
COOKIE = f"{TOKENS.cookie_name}={TOKENS.cookie_for(TOKEN)}"


def right_of(*cookies: str) -> Right:
    headers = [(b"cookie", cookie.encode()) for cookie in cookies]
    return AccessPolicy(TOKEN).right_of({"type": "http", "headers": headers, "server": ("127.0.0.1", 1)})


@pytest.mark.parametrize(
    "other",
    ['filters={"a": 1, "b": 2}', "bare", "a b=1", "list[0]=1", "name=caf\u00e9", "path=/", "secure", "", "=x", 'a="b'],
)
def test_a_cookie_of_another_program_on_this_host_signs_nobody_out(other: str) -> None:
    """Cookies are shared by all ports of a host, and few programs keep to RFC 6265."""
    assert right_of(f"{other}; {COOKIE}") is Right.CHANGE
    assert right_of(f"{COOKIE}; {other}") is Right.CHANGE


def test_a_cookie_that_somebody_else_set_under_our_name_hides_ours_in_no_order() -> None:
    stale = f"{TOKENS.cookie_name}=stale"
    assert right_of(f"{stale}; {COOKIE}") is Right.CHANGE
    assert right_of(f"{COOKIE}; {stale}") is Right.CHANGE
    assert right_of(stale) is Right.NONE


def test_several_cookie_headers_are_one() -> None:
    """HTTP/2 lets clients split it (RFC 9113, 8.2.3), and not every proxy joins it again."""
    assert right_of(COOKIE, "a=1") is Right.CHANGE
    assert right_of("a=1", COOKIE) is Right.CHANGE


def test_a_cookie_of_our_name_alone_proves_nothing() -> None:
    assert right_of(f"{TOKENS.cookie_name}=", f"{TOKENS.cookie_name}", f"x{COOKIE}", "a=1") is Right.NONE


@pytest.mark.parametrize("repeated", [r"\1", r"\012", r"\"", ";", "=", '"'])
def test_a_cookie_takes_no_longer_to_read_than_it_is_long(repeated: str) -> None:
    """Python's http.cookies takes the square of it (CVE-2024-7592): nobody had to know a token to stop the service for
    20 s by one request. Of this size, it would take hours."""
    assert right_of('a="' + repeated * 500_000 + f'"; {COOKIE}') is Right.CHANGE


@pytest.mark.parametrize(
    "hosts",
    [
        ["localhost", "attacker.example"],
        ["attacker.example", "localhost"],
        ["localhost:80", "attacker.example"],
        ["[::1]attacker.example"],
        ["127.0.0.1:80:attacker.example"],
        ["localhost:attacker.example"],
        ["127.0.0.1@attacker.example"],
        ["localhost.attacker.example"],
        [""],
        [],
    ],
)
def test_a_host_that_is_not_one_name_and_a_port_is_refused(hosts: list[str]) -> None:
    policy = AccessPolicy(None, hosts=frozenset({"localhost"}))
    headers = [(b"host", host.encode()) for host in hosts]
    scope = {"type": "http", "method": "GET", "headers": headers, "server": ("127.0.0.1", 1)}
    with pytest.raises(ProblemError) as refused:
        policy.check(scope, "/checkpoints")
    assert refused.value.status == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8765", "127.0.0.1:1", "[::1]", "[::1]:8765", "localhost:"])
def test_a_host_of_this_machine_is_let_in(host: str) -> None:
    policy = AccessPolicy(None, hosts=frozenset({"localhost"}))
    scope = {"type": "http", "method": "GET", "headers": [(b"host", host.encode())], "server": ("127.0.0.1", 1)}
    policy.check(scope, "/checkpoints")
