"""Guesses: who sends wrong tokens, and from when on they are told to slow down; pure, time is an argument."""

import ipaddress
from collections import OrderedDict

from starlette.types import Scope

PEER = "ckptd.peer"
"""In a request's scope: the address at the other end of its TCP connection, whatever a proxy's headers claim."""
PEER_UID = "ckptd.peer_uid"
"""In a request's scope: the user at the other end of a Unix socket (SO_PEERCRED, unix(7)), as the kernel knows it."""

FREE = 10
"""Wrong tokens that a peer may send in a row: a person who mistypes, a browser with several streams."""
FORGOTTEN_S = 6.0
"""Seconds after which one of them is forgotten: 10 a minute are answered for as long as one likes."""
MAX_PEERS = 4096
"""Peers that are remembered, 0.2 KB each; the one that was wrong longest ago is forgotten first."""
_NETWORK_BITS = 64
"""Of an IPv6 address: what a single subscriber is given, and can change the rest of at will (RFC 6177)."""


class Guesses:
    """Counts wrong tokens by peer. Right ones are never counted, and never asked about."""

    def __init__(self, *, free: int = FREE, forgotten_s: float = FORGOTTEN_S, max_peers: int = MAX_PEERS) -> None:
        self._free = free
        self._forgotten_s = forgotten_s
        self._max_peers = max_peers
        self._clear_at: OrderedDict[str, float] = OrderedDict()
        """Peer → when all its wrong tokens are forgotten (generic cell rate algorithm, ITU-T I.371)."""

    def __len__(self) -> int:
        return len(self._clear_at)

    def wait_s(self, peer: str, now: float) -> float:
        """Take note of a wrong token.

        Args:
            peer: see `peer_of`.
            now: in seconds, of any clock that does not go back.

        Returns:
            0.0 while the peer has some left; else seconds until it has one. What is refused so is not counted: a client
            that retries for ever is not put off for ever.
        """
        clear_at = max(self._clear_at.get(peer, now), now) + self._forgotten_s
        excess_s = clear_at - now - self._free * self._forgotten_s
        if excess_s > 0:
            self._clear_at.move_to_end(peer)
            return excess_s
        self._clear_at[peer] = clear_at
        self._clear_at.move_to_end(peer)
        if len(self._clear_at) > self._max_peers:
            self._clear_at.popitem(last=False)
        return 0.0


def peer_of(scope: Scope) -> str:
    """Whom to count a wrong token of a request against: a user of this machine, an address, or a network of IPv6.

    Behind a reverse proxy all its clients count together: an address in a header can be invented, and they lose nothing
    by it, as a right token is never refused. Where another application mounts ckptd, its server says who asks.
    """
    if PEER_UID in scope:
        return f"user {scope[PEER_UID]}"
    host = scope.get(PEER) or (scope.get("client") or ("unknown",))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address), _NETWORK_BITS), strict=False))
    return str(address)
