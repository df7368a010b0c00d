"""`--kill N`: choosing the moment and the victims.

The moment is the exchange of the run's middle round, as a peer's own status shows it; the ballot's leader is among the
dead. Where exactly half must die and the leader is the most senior peer, the next round's ballot has another leader;
in the last round, rather than kill nobody, the others die and a sentence says so. Pure; the show does the killing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.node.demo.plan import DemoPlan, choose_victims
from atoll.node.demo.snapshot import EXCHANGING, Snapshot


@dataclass(frozen=True)
class Verdict:
    victims: tuple[int, ...]
    sentence: str


class Executioner:
    def __init__(self, plan: DemoPlan) -> None:
        self._plan = plan
        self.done = not plan.kill

    def is_near(self, peers: Sequence[Snapshot]) -> bool:
        """Whether the moment may come soon, so that one should look often."""
        return not self.done and any(peer.round >= self._plan.kill_round for peer in peers if peer.alive)

    def judge(self, peers: Sequence[Snapshot]) -> Verdict | None:
        """Who dies now, if anybody; decided once."""
        current = max((peer.round for peer in peers if peer.alive), default=0)
        exchanging = [peer for peer in peers if peer.alive and peer.round == current and peer.state in EXCHANGING]
        if self.done or not exchanging or not self._plan.kill_round <= current < self._plan.rounds:
            return None
        alive = [peer.index for peer in peers if peer.alive]
        names = {peer.peer_id: peer.index for peer in peers}
        leader = next((names[peer.leader] for peer in exchanging if peer.leader in names), None)
        victims = self._choose(leader, alive) if leader else None
        where = f"in the exchange of round {current + 1}"
        if victims:
            others = ", ".join(str(victim) for victim in victims[1:])
            sentence = f"killed peer {leader}, the ballot's leader, {f'and {others} ' if others else ''}{where}."
        elif current == self._plan.rounds - 1 and (victims := self._choose(None, alive)):
            why = "has to live, or there is no quorum" if leader else "is not known"
            sentence = f"killed {', '.join(map(str, victims))} {where}; this last ballot's leader {why}."
        else:
            return None
        self.done = True
        return Verdict(victims, sentence)

    def _choose(self, leader: int | None, alive: Sequence[int]) -> tuple[int, ...] | None:
        return choose_victims(self._plan.kill, leader, alive, self._plan.voters)
