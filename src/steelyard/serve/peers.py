"""Peers that present keys not known here: after a few failures a second they wait, longer each time.

Attack: guessing keys, and filling logs and processors with guesses. A guess is not looked up while its peer waits, so
the answer says nothing about it; a secret let in lately is not kept out (many callers may share an address).
"""

import ipaddress
from math import ceil

MAX_FAILURES = 10  # in one second, before a peer waits
MAX_DELAY_S = 60.0
FORGET_S = 300.0  # a peer that was quiet for so long begins anew
MAX_PEERS = 4096

_IPV6_PREFIX = 64  # one customer has at least a /64: it is one peer


class _Peer:
    __slots__ = ("delay_s", "failures", "failures_at", "until")

    def __init__(self, now: float) -> None:
        self.failures = 0
        self.failures_at = now
        self.delay_s = 0.0
        self.until = 0.0


class Peers:
    """Failures by peer address. `now` is a monotonic time in seconds."""

    def __init__(self) -> None:
        self._peers: dict[str, _Peer] = {}  # the longest quiet first

    def wait_s(self, address: str, now: float) -> int | None:
        """Whole seconds that this peer has yet to wait; absent when it need not."""
        peer = self._peers.get(_network(address))
        return None if peer is None or now >= peer.until else ceil(peer.until - now)

    def failed(self, address: str, now: float) -> None:
        """A key from there was not known."""
        name = _network(address)
        peer = self._peers.pop(name, None)
        if peer is None or now - max(peer.failures_at, peer.until) > FORGET_S:
            peer = _Peer(now)
            if len(self._peers) >= MAX_PEERS:
                del self._peers[next(iter(self._peers))]
        self._peers[name] = peer
        if now - peer.failures_at >= 1.0:
            peer.failures, peer.failures_at = 0, now
        peer.failures += 1
        # Who waited once waits again at the next failure, not after ten more.
        if peer.failures > MAX_FAILURES or peer.delay_s:
            peer.delay_s = min(MAX_DELAY_S, peer.delay_s * 2 or 1.0)
            peer.until = now + peer.delay_s


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(int(found) >> (128 - _IPV6_PREFIX))
