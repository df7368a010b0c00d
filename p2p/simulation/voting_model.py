"""The voting core as a model small enough to be searched in full: a few voters, a few ballots, one parent.

The rules are the shipped ones: every step calls `synod`, `electorate` and `Tip`, so a fault planted there is a fault
here. Of `round`'s rules those that voting rests upon are repeated, one function each. Messages only ever accumulate:
one that arrives late or never is one that nobody has acted upon yet, and one that arrives twice is acted upon twice. It
knows no bytes, clocks or signatures, and not what should hold: that is `voting`, its only user.

Where the number of states is cut, and why nothing is lost by it:
- A leader takes its promises at the moment it proposes: any subset of those sent. Promises that nobody can read any
  more, because the proposer is gone, are dropped.
- Saving and sending is one step, as what was sent may get lost.
- A voter under a new journal needs no memory: it may have accepted any proposal that exists, and says whatever those
  who listen care to hear.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atoll.p2p.round import synod
from atoll.p2p.round.chain import Tip
from atoll.p2p.round.electorate import Electorate, Standings
from atoll.p2p.round.synod import Acceptor, Proposer
from atoll.protocol.certificate import Value, Voter
from atoll.protocol.digest import Digest
from atoll.protocol.standing import JOURNAL_BYTES

Label = tuple[int, int]
"""A leader's own value: the ballot, and whether it is its first there (0) or, where rules are broken, another (1)."""

Accepted = tuple[int, Label] | None


# Rules that stand in `round` and not in `synod`, one function each.


def restored(acceptor: Acceptor) -> Acceptor:
    """What a voter remembers after a restart."""
    return acceptor


def hears(entry: Voter, journal: bytes) -> bool:
    """Whether a leader counts a promise under this journal."""
    return entry.journal == journal


def leads(entry: Voter, journal: bytes) -> bool:
    """Whether a voter leads ballots: not under a new journal, because it may have proposed before, and forgotten."""
    return entry.journal == journal


def may_answer(acceptor: Acceptor, ballot: int) -> bool:
    """A PROMISE speaks of ballots below its own."""
    return acceptor.accepted is None or acceptor.accepted[0] < ballot


def first_turn(acceptor: Acceptor) -> int:
    """The lowest ballot that a voter may open: above what it promised, since it may have forgotten its proposer."""
    return acceptor.promised + 1 if acceptor.promised or acceptor.accepted else 0


# A state: what each voter remembers and has said, and what leaders have said to all.


class Mind(NamedTuple):
    """A voter. `votes`, `promises` and `last` are messages under its named journal, and outlive everything."""

    acceptor: Acceptor | None = Acceptor()  # None: it can do nothing more (inert), or its journal is new (lost)
    votes: frozenset[tuple[int, Label]] = frozenset()
    promises: frozenset[tuple[int, Accepted]] = frozenset()  # (ballot, accepted) to leaders that may still read it
    last: tuple[Accepted] | None = None
    sworn: int = 0  # the highest promise it gave
    lost: bool = False
    broken: str = ""  # the rule that its last vote broke


class Turn(NamedTuple):
    """A ballot."""

    prepared: bool = False  # PREPARE was sent
    open: bool = False  # its leader has a proposer that may propose
    made: bool = False  # and has proposed already: only where rules are broken
    values: tuple[Label, ...] = ()  # PROPOSEd


class Board(NamedTuple):
    turns: tuple[Turn, ...]
    losses: int  # disks that may still be lost

    def put(self, ballot: int, turn: Turn) -> "Board":
        return self._replace(turns=(*self.turns[:ballot], turn, *self.turns[ballot + 1 :]))

    def proposals(self) -> list[tuple[int, Label]]:
        return [(ballot, label) for ballot, turn in enumerate(self.turns) for label in turn.values]


Step = tuple[str, Mind, Board]
"""What happened, the voter's mind after it, the board after it."""


class World:
    """What stays the same throughout a search: the voters, the order in which they lead, the values there can be."""

    def __init__(self, voters: int, ballots: int, first: int) -> None:
        """`first`: the ballot whose leader is the most senior voter."""
        self.voters, self.ballots = range(voters), range(ballots)
        self.peers = [bytes([i + 1]) * 32 for i in self.voters]
        self.journals = [bytes([i + 1]) * JOURNAL_BYTES for i in self.voters]
        self.new_journals = [bytes([i + 101]) * JOURNAL_BYTES for i in self.voters]
        self.electorate: Electorate = tuple(map(Voter, self.peers, self.journals))
        parents = (number.to_bytes(32, "big") for number in itertools.count(1))
        tips = (Tip(parent, parent, 1, 1, bytes(32), Standings(self.electorate)) for parent in parents)
        self.tip = next(tip for tip in tips if tip.leader(first) == self.peers[0])
        self.parent = self.tip.id
        self.leaders = [self.peers.index(self.tip.leader(ballot)) for ballot in self.ballots]
        self.values: dict[Label, Value] = {}
        self.labels: dict[Digest, Label] = {}
        for label in itertools.product(self.ballots, range(2)):
            value = Value(self.parent, 1, 1, (), (), b"", (), self.electorate, bytes(label) * 16)
            self.values[label], self.labels[value.id] = value, label

    def short(self, accepted: synod.Accepted | None) -> Accepted:
        return None if accepted is None else (accepted[0], self.labels[accepted[1].id])

    def is_quorum(self, voters: Sequence[int]) -> bool:
        """The definition of DESIGN rule 2, on its own: not what the rules under test believe."""
        return 2 * len(voters) + (0 in voters) > len(self.voters)


class Steps:
    """What one voter may do next, by the shipped rules: (text, its mind after it, the board after it)."""

    def __init__(self, world: World) -> None:
        self.world = world

    def of(self, voter: int, mind: Mind, board: Board) -> Iterator[Step]:
        if mind.acceptor is not None:
            yield from self._answers(voter, mind, mind.acceptor, board)
            yield from self._votes(voter, mind, mind.acceptor, board)
            left = mind.acceptor.leave()
            said = mind.last or (self.world.short(left.accepted),)
            yield f"voter {voter} gives its last promise", mind._replace(acceptor=left, last=said), board
            back = mind._replace(acceptor=restored(mind.acceptor))
            yield f"voter {voter} restarts", back, self._close(voter, board)
        yield from self._opens(voter, mind, board)
        if board.losses and not mind.lost:
            lost = self._close(voter, board)._replace(losses=board.losses - 1)
            yield f"voter {voter} loses its disk", mind._replace(lost=True), lost

    def memory(self, voter: int, mind: Mind) -> Acceptor | None:
        """What a leader goes by. A lost journal starts with an empty one."""
        if mind.lost:
            allowed = leads(self.world.electorate[voter], self.world.new_journals[voter])
            return Acceptor() if allowed else None
        return mind.acceptor

    def voted(self, mind: Mind, acceptor: Acceptor, ballot: int, label: Label) -> Mind:
        """A vote, and whether it may be: never after the last promise, below a promise, or twice in a ballot."""
        vote = ballot, label
        if mind.lost:
            return mind
        if vote in mind.votes:
            return mind._replace(acceptor=acceptor)
        broken = mind.broken
        if mind.last is not None:
            broken = "a vote after the last promise"
        elif ballot < mind.sworn:
            broken = "a vote in a ballot below a promise"
        elif any(before == ballot for before, _ in mind.votes):
            broken = "votes for two values in one ballot"
        return mind._replace(acceptor=acceptor, votes=mind.votes | {vote}, broken=broken)

    def settled(self, mind: Mind) -> Mind:
        """The same mind without what can never matter again."""
        acceptor = mind.acceptor
        if mind.lost or acceptor is None or self._inert(acceptor):
            return mind._replace(acceptor=None, sworn=0)
        return mind

    def _inert(self, acceptor: Acceptor) -> bool:
        values = self.world.values.values()
        return restored(acceptor) == acceptor and not any(
            acceptor.promise(b) or any(acceptor.accept(b, value) for value in values) for b in self.world.ballots
        )

    def _answers(
        self, voter: int, mind: Mind, acceptor: Acceptor, board: Board
    ) -> Iterator[Step]:
        for ballot, turn in enumerate(board.turns):
            after = acceptor.promise(ballot) if turn.prepared and self.world.leaders[ballot] != voter else None
            if after is not None and may_answer(after, ballot):
                text = f"voter {voter} promises ballot {ballot}, having accepted {self.world.short(after.accepted)}"
                yield text, self._promised(mind, after, ballot, turn), board

    def _promised(self, mind: Mind, acceptor: Acceptor, ballot: int, turn: Turn) -> Mind:
        said = {(ballot, self.world.short(acceptor.accepted))} if turn.open else set()
        promises = mind.promises | said
        return mind._replace(acceptor=acceptor, promises=promises, sworn=max(mind.sworn, ballot))

    def _votes(
        self, voter: int, mind: Mind, acceptor: Acceptor, board: Board
    ) -> Iterator[Step]:
        for ballot, label in board.proposals():
            after = acceptor.accept(ballot, self.world.values[label])
            if after is not None:
                text = f"voter {voter} votes in ballot {ballot} for {label}"
                yield text, self.voted(mind, after, ballot, label), board

    def _opens(self, voter: int, mind: Mind, board: Board) -> Iterator[Step]:
        world, acceptor = self.world, self.memory(voter, mind)
        if acceptor is None:
            return
        least = range(first_turn(acceptor), len(world.ballots))
        turns = {world.tip.next_turn(world.peers[voter], at_least) for at_least in least}
        for ballot in sorted(turn for turn in turns if turn is not None and turn in world.ballots):
            turn = board.turns[ballot]
            if world.leaders[ballot] != voter or turn.open:
                continue  # nobody listens to another leader
            if ballot == 0:
                text, label = f"voter {voter} proposes in ballot 0", own_label(0, turn)
                after = acceptor.accept(0, world.values[label]) if label not in turn.values else None
                if after is not None and Proposer(0).may_propose(world.electorate):
                    spoken = board.put(0, Turn(values=(*turn.values, label)))
                    yield text, self.voted(mind, after, 0, label), spoken
                continue
            after = acceptor.promise(ballot)
            if after is not None:
                opened = turn._replace(prepared=True, open=True, made=False)
                promised = mind if mind.lost else self._promised(mind, after, ballot, opened)
                yield f"voter {voter} opens ballot {ballot}", promised, self._close(voter, board).put(ballot, opened)

    def _close(self, voter: int, board: Board) -> Board:
        """The proposer is gone: it was volatile, or a higher ballot took its place."""
        for ballot, turn in enumerate(board.turns):
            if turn.open and self.world.leaders[ballot] == voter:
                board = board.put(ballot, turn._replace(open=False, made=False))
        return board


def own_label(ballot: int, turn: Turn) -> Label:
    return ballot, int(any(first == ballot for first, _ in turn.values))


class Proposals:
    """What the leader of an open ballot may propose: by any subset of the promises that were sent to it."""

    def __init__(self, steps: Steps) -> None:
        self.steps, self.world = steps, steps.world

    def of(self, ballot: int, minds: Sequence[Mind], board: Board) -> list[Step]:
        world, turn = self.world, board.turns[ballot]
        heard = [self._heard(ballot, voter, mind, board) for voter, mind in enumerate(minds)]
        made = world.values[turn.values[-1]] if turn.made else None
        bounds: set[Label | None] = set()
        for picked in itertools.product(*([(), *((said,) for said in sorted(h, key=repr))] for h in heard)):
            promises = {
                world.peers[voter]: None if said[0] is None else (said[0][0], world.values[said[0][1]])
                for voter, said in enumerate(picked)
                if said
            }
            proposer = Proposer(ballot, promises, made)
            if proposer.may_propose(world.electorate):
                bound = proposer.bound()
                bounds.add(None if bound is None else world.labels[bound.id])
        return [self._proposed(ballot, bound, minds, board) for bound in sorted(bounds, key=repr)]

    def _heard(self, ballot: int, voter: int, mind: Mind, board: Board) -> set[Accepted]:
        """What this voter's promises may have told the leader."""
        heard = {accepted for to, accepted in mind.promises if to == ballot}
        if mind.lost and hears(self.world.electorate[voter], self.world.new_journals[voter]):
            heard |= {None, *(said for said in board.proposals() if said[0] < ballot)}
        return heard

    def _proposed(
        self, ballot: int, bound: Label | None, minds: Sequence[Mind], board: Board
    ) -> Step:
        world, turn, voter = self.world, board.turns[ballot], self.world.leaders[ballot]
        mind, label = minds[voter], own_label(ballot, turn) if bound is None else bound
        if bound is None:  # a leader votes for its own value, durably, before it proposes it
            memory = self.steps.memory(voter, mind)
            after = None if memory is None or label in turn.values else memory.accept(ballot, world.values[label])
            if after is None:
                return "", mind, board
            mind = self.steps.voted(mind, after, ballot, label)
        elif label in turn.values:
            return "", mind, board
        everyone = dict.fromkeys(world.peers)
        again = Proposer(ballot, everyone, world.values[label]).may_propose(world.electorate)
        spoken = board.put(ballot, turn._replace(open=again, made=again, values=(*turn.values, label)))
        return f"voter {voter} proposes {label} in ballot {ballot}", mind, spoken
