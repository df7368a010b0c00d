"""Who is there, who is gone, and when something is due. Local monotonic seconds only; no two clocks are ever compared.

A peer lives while it makes progress: any message or bytes within `gone_after_s`. A closed stream is only a hint that
shortens the wait. Peers that have not been heard of since this peer started are awaited a little longer.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from atoll.protocol.identity import PeerId
from atoll.protocol.manifest import ExchangeSettings
from atoll.protocol.messages import Ready

HINT_S = 1.5
NEWCOMER_FACTOR = 3.0


@dataclass
class Presence:
    """What is known of one other peer."""

    ready: Ready | None = None
    heard_at: float = 0.0
    gone_at: float = 0.0  # silent until then, it counts as gone


class Pace:
    def __init__(self, settings: ExchangeSettings, now: float) -> None:
        self.settings = settings
        self.started_at = now
        self.peers: dict[PeerId, Presence] = {}
        self.leavers: set[PeerId] = set()
        self.next_heartbeat = self.woke_at = self._seen_at = self._next_end = now

    def notice(self, now: float) -> None:
        """Time has come this far. A long gap since the last event means that this process or machine was stopped:
        nobody can be blamed for the silence, and patience begins anew.
        """
        if now - self._seen_at > self.settings.gone_after_s + 2 * self.settings.heartbeat_s:
            self.woke_at = now
        self._seen_at = now

    def heard(self, peer: PeerId, now: float, ready: Ready | None = None) -> bool:
        """Note a sign of life; True if the peer was unknown or counted as gone."""
        news = not self.present(peer, now)
        presence = self.peers.setdefault(peer, Presence())
        presence.heard_at, presence.gone_at = now, now + self.settings.gone_after_s
        self._next_end = min(self._next_end, presence.gone_at)
        if ready is not None:
            presence.ready = ready
            (self.leavers.add if ready.leaving else self.leavers.discard)(peer)
        return news

    def forget(self, peer: PeerId) -> None:
        """Neither wait for a peer nor count on it."""
        self.peers.pop(peer, None)
        self.leavers.discard(peer)

    def disconnected(self, peer: PeerId, now: float) -> None:
        """A stream from `peer` closed: if it lives it will be back within moments."""
        presence = self.peers.get(peer)
        if presence is not None:
            presence.gone_at = min(presence.gone_at, now + min(HINT_S, self.settings.gone_after_s))
            self._next_end = min(self._next_end, presence.gone_at)

    def present(self, peer: PeerId, now: float) -> bool:
        presence = self.peers.get(peer)
        return presence is not None and now < presence.gone_at

    def leaving(self, peer: PeerId) -> bool:
        """Whether the peer has said goodbye; it may stay to vote for the value that removes it."""
        return peer in self.leavers

    def ready(self, peer: PeerId, now: float) -> Ready | None:
        """The last READY of a peer that is present."""
        presence = self.peers.get(peer)
        return presence.ready if presence is not None and self.present(peer, now) else None

    def awaited(self, peer: PeerId, now: float) -> bool:
        """Worth waiting for: present, or not heard of yet and this peer has only just started."""
        return self.count_awaited((peer,), b"", now) > 0

    def count_awaited(self, peers: Iterable[PeerId], me: PeerId, now: float) -> int:
        """How many of these, other than `me`, are worth waiting for."""
        newcomers = now < self.started_at + NEWCOMER_FACTOR * self.settings.gone_after_s
        known, count = self.peers, 0
        for peer in peers:
            presence = known.get(peer)
            if peer != me and (newcomers if presence is None else now < presence.gone_at):
                count += 1
        return count

    def alive(self, now: float) -> list[PeerId]:
        return sorted(peer for peer in self.peers if self.present(peer, now))

    def next_change(self, now: float) -> float:
        """When presence may change next without an event: the earliest expiry ahead, or the next heartbeat."""
        if self._next_end <= now:  # signs of life only move it on: too early is harmless, too late cannot be
            ends = [p.gone_at for p in self.peers.values() if p.gone_at > now]
            newcomers = self.started_at + NEWCOMER_FACTOR * self.settings.gone_after_s
            self._next_end = min([now + self.settings.gone_after_s, *ends, *([newcomers] if newcomers > now else [])])
        return min(self.next_heartbeat, self._next_end)
