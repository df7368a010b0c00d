"""The wall clock that a network of strangers can agree on: this machine's, shifted to the median of its peers'.

Records carry expiry dates, so a machine whose clock is hours off would refuse everybody's records and see its own
refused. Peers report their *raw* clocks, never the shifted ones, and everybody takes the lower median of those it
knows and its own: a handful of wrong clocks moves nobody, and two peers alone choose the same one of their two.
One offset per process, since hivemind reads time through module functions. Rounds do not depend on it.
"""

import time

from atoll.protocol.identity import PeerId

TOLERATED_S = 1.5
"""Offsets below this are left alone: round-trip noise must not make time jump."""
_MAX_PEERS = 64


class PeerClocks:
    """What the clocks of peers are ahead of this machine's, by peer."""

    def __init__(self) -> None:
        self._ahead_s: dict[PeerId, float] = {}

    def observe(self, peer: PeerId, ahead_s: float) -> float:
        """Note that `peer`'s clock is `ahead_s` ahead of this one; returns the offset now in force."""
        self._ahead_s.pop(peer, None)
        self._ahead_s[peer] = ahead_s
        while len(self._ahead_s) > _MAX_PEERS:
            del self._ahead_s[next(iter(self._ahead_s))]
        return self.offset_s

    @property
    def offset_s(self) -> float:
        known = sorted([0.0, *self._ahead_s.values()])
        median = known[(len(known) - 1) // 2]
        return median if abs(median) > TOLERATED_S else 0.0


_offset_s = 0.0


def set_offset(offset_s: float) -> None:
    global _offset_s  # noqa: PLW0603  # hivemind calls a function without arguments
    _offset_s = offset_s


def network_time_s() -> float:
    """Unix time as the network sees it."""
    return time.time() + _offset_s


def machine_time_s() -> float:
    """Unix time as this machine sees it: what peers are told when they ask."""
    return time.time()
