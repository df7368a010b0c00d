"""What a demo is asked to do, checked as a whole before anything is made, and who may be killed in it.

Pure: knows no processes, files or clocks. Called by `atoll demo`'s command line and by the show that runs the plan.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll.node.errors import UsageError
from atoll.protocol.errors import AtollError
from atoll.protocol.manifest import MAX_ELECTORATE

MAX_PEERS = 64
MAX_RANKS = 16


class DemoError(AtollError):
    """A demo that cannot be done as asked, or that did not come out as it must."""

    code = "demo"


class NoQuorumError(DemoError):
    """A demo that would kill so many peers that the rest could not agree."""

    code = "no_quorum"


@dataclass(frozen=True)
class DemoPlan:
    """The arguments of `atoll demo`. Peers are numbered from 1; peer 1 is the most senior voter and the bootstrap."""

    peers: int = 4
    rounds: int = 8        # 0: until interrupted
    inner_steps: int = 20
    kill: int = 0
    ranks: int = 1         # local processes of each peer's trainer
    data: tuple[Path, ...] = ()   # empty: the standard library's source
    home: Path | None = None      # None: a temporary folder, removed at the end

    @property
    def voters(self) -> int:
        """The first so many peers make up the electorate; the others contribute all the same."""
        return min(self.peers, MAX_ELECTORATE)

    @property
    def kill_round(self) -> int:
        """Certified rounds before the one in whose exchange peers are killed: the middle of the run."""
        return (self.rounds - 1) // 2

    def check(self) -> None:
        """Raise UsageError or NoQuorumError with the value, the bound and the reason."""
        _bounded("--peers", self.peers, 1, MAX_PEERS)
        _bounded("--rounds", self.rounds, 0, 10_000_000)
        _bounded("--inner-steps", self.inner_steps, 1, 100_000)
        _bounded("--ranks", self.ranks, 1, MAX_RANKS)
        if self.kill < 0:
            raise UsageError(f"--kill is {self.kill}, it counts peers: 0 or more.")
        if self.kill and not self.rounds:
            raise UsageError("--kill needs a run that ends: give --rounds a number above 0, or kill peers by hand.")
        most = most_killed(self.peers, self.voters)
        if self.kill > most:
            raise NoQuorumError(
                f"--kill {self.kill} of {self.peers} peers leaves no quorum, without which nothing is agreed: "
                f"more than half of the {self.voters} voters, or exactly half with the most senior among them. "
                + (f"At most {most} may be killed here." if most else "Nobody may be killed here: use more peers.")
            )


def is_quorum(present: Collection[int], voters: int) -> bool:
    """Whether these of the voters 1 … `voters` can certify: more than half, or exactly half with voter 1."""
    count = sum(1 for voter in range(1, voters + 1) if voter in present)
    return 2 * count > voters or (2 * count == voters and 1 in present)


def most_killed(peers: int, voters: int) -> int:
    """The largest number of peers that can die, a voter among them, with a quorum left: 0 for a lone peer."""
    return voters // 2 + (peers - voters)


def choose_victims(count: int, leader: int | None, alive: Sequence[int], voters: int) -> tuple[int, ...] | None:
    """`count` of the living peers, the leader first, whose death leaves a quorum of the electorate.

    Juniors die before seniors and voters before others. None where no such choice exists: when exactly half may die
    and the leader is the most senior, without whom the other half is no quorum. Another round has another leader.
    """
    if leader is not None and leader not in alive:
        return None
    victims = [] if leader is None else [leader]
    others = [peer for peer in alive if peer != leader]
    for peer in sorted(others, key=lambda peer: (peer > voters, -peer)):
        if len(victims) == count:
            break
        if is_quorum([other for other in alive if other not in victims and other != peer], voters):
            victims.append(peer)
    enough = len(victims) == count and is_quorum([peer for peer in alive if peer not in victims], voters)
    return tuple(victims) if enough else None


def _bounded(flag: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UsageError(f"{flag} is {value}, {low:,} to {high:,} are possible.")
