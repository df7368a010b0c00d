"""The last events of a simulation, for whoever reads a violation: kept as objects, put into words on demand."""

from collections import deque
from typing import Any

from atoll.p2p.round import effects
from atoll.protocol.certificate import Certificate, Value
from atoll.protocol.fork import Fork
from atoll.protocol.identity import PeerId
from atoll.protocol.messages import Blob, Cert, Get, Prepare, Promise, Propose, Ready, Start, Voted

KEPT = 6000
SHOWN = 120


class Timeline:
    def __init__(self, names: dict[PeerId, str]) -> None:
        self.names = names
        self._events: deque[tuple[float, str, str, Any]] = deque(maxlen=KEPT)

    def add(self, now: float, peer: str, what: str, subject: Any = None) -> None:
        self._events.append((now, peer, what, subject))

    def lines(self) -> list[str]:
        """The newest events, oldest first; what one peer says to many at once is one line."""
        found: list[str] = []
        last: tuple[Any, ...] = ()
        for now, peer, what, subject in reversed(self._events):
            if isinstance(subject, effects.Send):
                key = now, peer, id(subject.message)
                to = self.names.get(subject.to, "?")
                if key == last and found:
                    head, _, rest = found[-1].partition(" -> ")
                    found[-1] = f"{head} -> {to} {rest}"
                    continue
                last = key
                found.append(f"{now:9.3f} {peer:>4} {self.describe(subject.message)} -> {to}")
            else:
                last = ()
                text = f" {self.describe(subject)}" if subject is not None else ""
                found.append(f"{now:9.3f} {peer:>4} {what}{text}")
            if len(found) > SHOWN:
                break
        return found[:SHOWN][::-1]

    def name(self, peer: PeerId | None) -> str:
        return "?" if peer is None else self.names.get(peer, peer.hex()[-6:])

    def describe(self, item: Any) -> str:  # noqa: C901, PLR0911, PLR0912  one short case for each kind of thing
        match item:
            case str():
                return item
            case bytes():
                return item.hex()[:8]
            case Value():
                who = ",".join(self.name(c.peer) for c in item.contributions) or "nobody"
                return f"value {item.id.hex()[:8]} (round {item.round} on {item.parent.hex()[:8]}, of {who})"
            case Certificate():
                votes = ",".join(self.name(v.peer) for v in item.votes)
                where = f"round {item.value.round} on {item.value.parent.hex()[:8]}"
                return f"certificate {item.id.hex()[:8]} ({where}, ballot {item.ballot}, votes {votes})"
            case Fork():
                signers = ",".join(map(self.name, item.signers))
                return f"FORK {item.id.hex()[:8]} (on {item.parent.hex()[:8]}, rank {int(item.rank)}, of {signers})"
            case Ready():
                wish = f", {item.record.kind.name}" if item.record is not None else ""
                return f"READY {item.phase} round {item.round} tip {item.tip.hex()[:8]}{wish}"
            case Start():
                return f"START({item.ballot}.{item.attempt}) on {item.parent.hex()[:8]}, {len(item.members)} members"
            case Prepare():
                last = "" if item.nonce is None else f", last {item.nonce.hex()[:6]} rank {int(item.rank)}"
                return f"PREPARE({item.ballot}{last}) on {item.parent.hex()[:8]}"
            case Promise():
                said = "nothing" if item.accepted is None else f"{item.accepted[0]}:{item.accepted[1].id.hex()[:8]}"
                last = "" if item.last is None else f", last {item.last.nonce.hex()[:6]}"
                return f"PROMISE({item.ballot}{last}) on {item.parent.hex()[:8]}, accepted {said}"
            case Propose():
                return f"PROPOSE({item.ballot}) {self.describe(item.value)}"
            case Voted():
                return f"VOTE({item.vote.ballot}) for {item.vote.certificate.hex()[:8]} on {item.parent.hex()[:8]}"
            case Cert():
                return f"CERT {self.describe(item.link)}"
            case Get():
                return f"GET {item.content.name} {item.digest.hex()[:8]}"
            case Blob():
                found = "missing " if item.size is None else ""
                return f"BLOB {found}{item.content.name} {item.digest.hex()[:8]} part {item.part}"
        return str(item)[:160]
