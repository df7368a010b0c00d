"""Exhaustive search of the voting core: every interleaving of a few voters and ballots under one parent.

Random runs hardly find voting bugs, so this walks *all* states of a small electorate: messages lost, late, twice and in
any order, restarts at any point, a lost disk, the last ballot and every FORK that it allows. The steps are those of
`voting_model`, which calls the shipped rules; what must hold (`Properties`) is computed here from who voted for what,
except where the shipped tally and the shipped evidence are what is examined. Used by the tests and by
`python -m atoll.p2p.simulation.voting --voters 3 --ballots 3`. It says nothing about times, bytes or fork choice: the
simulator does.

What makes it quick: a state is one integer that names what each voter remembers and has said, and what leaders have
said to all; the moves of a voter depend on its own part and the board alone and are worked out once.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from atoll.p2p.round import synod
from atoll.p2p.round.synod import Tally
from atoll.p2p.simulation.voting_model import Accepted, Board, Label, Mind, Proposals, Step, Steps, Turn, World
from atoll.protocol.certificate import Vote
from atoll.protocol.digest import Digest
from atoll.protocol.fork import NONCE_BYTES, Fork, LastPromise, Rank

WIDTH = 14  # bits of a state for what one voter remembers and has said
MASK = (1 << WIDTH) - 1

T = TypeVar("T")


@dataclass(frozen=True)
class Violation:
    rule: str
    steps: tuple[str, ...]  # the shortest way there


@dataclass(frozen=True)
class Result:
    states: int
    seconds: float
    violation: Violation | None


class Numbers(Generic[T]):
    """Things of one kind, numbered as they turn up."""

    def __init__(self) -> None:
        self.all: list[T] = []
        self._known: dict[T, int] = {}

    def of(self, thing: T) -> int:
        number = self._known.get(thing)
        if number is None:
            number = self._known[thing] = len(self.all)
            self.all.append(thing)
        return number


class Properties:
    """What must hold in every state; each returns the rule that is broken, or nothing."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._certified: dict[Any, set[Label]] = {}
        self._forks: dict[Any, list[tuple[Digest, frozenset[int], Accepted]]] = {}

    def broken(self, minds: Sequence[Mind], board: Board) -> str:
        for mind in minds:
            if mind.broken:
                return mind.broken
        chosen, certified = self.chosen(minds), self.certified(minds, board)
        if len(chosen) > 1:
            return f"two values are chosen: {sorted(chosen)}"
        if len(certified) > 1:
            return f"two values are certified: {sorted(certified)}"
        if not certified <= chosen:
            return f"a value is certified that no quorum chose: {sorted(certified)}"
        return self._broken_fork(minds, board, chosen)

    def chosen(self, minds: Sequence[Mind]) -> set[Label]:
        """Values that a quorum voted for in one ballot, under the journals that the parent names."""
        votes = {vote for mind in minds for vote in mind.votes}
        by = {vote: [voter for voter, mind in enumerate(minds) if vote in mind.votes] for vote in votes}
        return {label for (_, label), voters in by.items() if self.world.is_quorum(voters)}

    def certified(self, minds: Sequence[Mind], board: Board) -> set[Label]:
        """Values for which the shipped tally makes a certificate of all votes there are or may be."""
        said = tuple(mind.votes for mind in minds)
        more = tuple((voter, vote) for voter, mind in enumerate(minds) if mind.lost for vote in board.proposals())
        if (said, more) not in self._certified:
            world, tally = self.world, Tally()
            named = [(voter, world.journals[voter], vote) for voter, votes in enumerate(said) for vote in votes]
            for voter, journal, (ballot, label) in [*named, *((i, world.new_journals[i], vote) for i, vote in more)]:
                name = world.values[label].id
                tally.add(Vote(world.parent, ballot, name, world.peers[voter], journal, b""), world.tip.countable)
            self._certified[said, more] = {
                label for label, value in world.values.items() if tally.certificate({value.id: value}, world.electorate)
            }
        return self._certified[said, more]

    def _broken_fork(self, minds: Sequence[Mind], board: Board, chosen: set[Label]) -> str:
        decided: dict[Digest, set[object]] = {self.world.parent: set(chosen)}
        for name, named, bound in self.forks(minds, board):
            if bound is not None and not any(bound in minds[voter].votes for voter in named):
                return f"a FORK is bound to {bound}, which no signer of it accepted under its named journal"
            if self.world.is_quorum(sorted(named)) and not chosen <= {bound and bound[1]}:
                return f"a FORK of a quorum is bound to {bound}, but {sorted(chosen)} is chosen"
            # Its survivors decide what they are bound to, or a value of their own; under the FORK, not its parent.
            decided.setdefault(name, set()).add(bound[1] if bound is not None else named)
        if any(len(values) > 1 for values in decided.values()):
            return "survivors of a FORK decide under an id under which something else is decided"
        return ""

    def forks(self, minds: Sequence[Mind], board: Board) -> list[tuple[Digest, frozenset[int], Accepted]]:
        """Every FORK that can be made of the last promises given: (id, signers under named journals, evidence)."""
        lasts = tuple(mind.last for mind in minds)
        lost = tuple(voter for voter, mind in enumerate(minds) if mind.lost)
        key = lasts, lost, tuple(board.proposals()) if lost else ()
        if key not in self._forks:
            new = [None, *key[2]]  # under a new journal a voter may since have accepted any proposal there is
            options = [
                [(voter, self.world.journals[voter], said) for said in last or ()]
                + [(voter, self.world.new_journals[voter], said) for said in (new if voter in lost else ())]
                for voter, last in enumerate(lasts)
            ]
            subsets = itertools.product(*([None, *option] for option in options))
            self._forks[key] = [self._fork([one for one in subset if one]) for subset in subsets if any(subset)]
        return self._forks[key]

    def _fork(self, signed: list[tuple[int, bytes, Accepted]]) -> tuple[Digest, frozenset[int], Accepted]:
        world, nonce = self.world, bytes(NONCE_BYTES)
        promises = tuple(
            LastPromise(
                world.parent, nonce, Rank.VOTERS, world.peers[voter], journal,
                None if said is None else (said[0], world.values[said[1]].id), b"",
            )
            for voter, journal, said in signed
        )
        found = synod.evidence(promises, world.tip.countable)
        bound = None if found is None else (found[0], world.labels[found[1]])
        fork = Fork(world.parent, nonce, Rank.VOTERS, promises, None if bound is None else world.values[bound[1]])
        named = frozenset(voter for voter, journal, _ in signed if journal == world.journals[voter])
        return fork.id, named, bound


class Search:
    """Breadth first, so that a violation is reached by one of the shortest ways."""

    def __init__(self, world: World, losses: int) -> None:
        self._world, self._steps = world, Steps(world)
        self._proposals, self._properties = Proposals(self._steps), Properties(world)
        self._minds: Numbers[Mind] = Numbers()
        self._boards: Numbers[Board] = Numbers()
        self._shifts = [WIDTH * voter for voter in world.voters]
        self._top = WIDTH * len(world.voters)
        self._start = self._pack([Mind()] * len(world.voters), Board(tuple(Turn() for _ in world.ballots), losses))
        # Memo tables. A move is (what to add to the state, ballots whose promises nobody can read any more).
        self._moves: list[dict[int, list[tuple[int, tuple[int, ...]]]]] = [{} for _ in world.voters]
        self._proposed: dict[Any, list[tuple[int, tuple[int, ...]]]] = {}
        self._said: dict[tuple[int, int], Any] = {}
        self._open: dict[int, tuple[int, ...]] = {}
        self._dropped: dict[tuple[int, int], int] = {}
        self._seen_by_properties: Numbers[Any] = Numbers()
        self._views: dict[int, int] = {}
        self._rules: dict[int, str] = {}

    @property
    def minds(self) -> Sequence[Mind]:
        """What a voter can come to remember and to have said, as far as the search has gone."""
        return self._minds.all

    def run(self) -> Result:
        began = time.perf_counter()
        known, frontier = {self._start: -1}, [self._start]
        while frontier:
            following = []
            for state in frontier:
                for delta, closed in self._all_moves(state):
                    after = self._without_promises(state + delta, closed) if closed else state + delta
                    if after not in known:
                        known[after] = state
                        following.append(after)
                        if rule := self._broken(after):
                            way = tuple(self._way(after, known))
                            return Result(len(known), time.perf_counter() - began, Violation(rule, way))
            frontier = following
        return Result(len(known), time.perf_counter() - began, None)

    def _all_moves(self, state: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        board = state >> self._top
        for voter, (shift, memo) in enumerate(zip(self._shifts, self._moves, strict=True)):
            mind = state >> shift & MASK
            key = board << WIDTH | mind
            moves = memo.get(key)
            if moves is None:
                steps = self._steps.of(voter, self._minds.all[mind], self._boards.all[board])
                moves = memo[key] = [self._move(state, voter, step) for step in steps]
                memo[key] = moves = sorted({move for move in moves if move != (0, ())})
            yield from moves
        opened = self._open.get(board)
        if opened is None:
            turns = self._boards.all[board].turns
            opened = self._open[board] = tuple(ballot for ballot, turn in enumerate(turns) if turn.open)
        for ballot in opened:
            yield from self._proposal_moves(state, ballot, board)

    def _proposal_moves(self, state: int, ballot: int, board: int) -> list[tuple[int, tuple[int, ...]]]:
        leader, minds = self._world.leaders[ballot], [state >> shift & MASK for shift in self._shifts]
        key = (ballot, board, minds[leader], *(self._promises(ballot, mind) for mind in minds))
        moves = self._proposed.get(key)
        if moves is None:
            steps = self._proposals.of(ballot, [self._minds.all[mind] for mind in minds], self._boards.all[board])
            moves = self._proposed[key] = [self._move(state, leader, step) for step in steps if step[0]]
        return moves

    def _promises(self, ballot: int, mind: int) -> Any:
        """What a leader may have heard from a voter, as far as a memo table needs it."""
        key = ballot, mind
        if key not in self._said:
            whole = self._minds.all[mind]
            self._said[key] = whole.lost, frozenset(said for to, said in whole.promises if to == ballot)
        return self._said[key]

    def _move(self, state: int, voter: int, step: Step) -> tuple[int, tuple[int, ...]]:
        _, mind, board = step
        before = state >> self._shifts[voter] & MASK, state >> self._top
        turns = zip(self._boards.all[before[1]].turns, board.turns, strict=True)
        closed = tuple(ballot for ballot, (was, now) in enumerate(turns) if was.open and not now.open)
        delta = self._number(self._steps.settled(mind)) - before[0] << self._shifts[voter]
        return delta + (self._boards.of(board) - before[1] << self._top), closed

    def _without_promises(self, state: int, ballots: tuple[int, ...]) -> int:
        for ballot, shift in itertools.product(ballots, self._shifts):
            key = ballot, state >> shift & MASK
            change = self._dropped.get(key)
            if change is None:
                mind = self._minds.all[key[1]]
                kept = frozenset(promise for promise in mind.promises if promise[0] != ballot)
                change = self._dropped[key] = self._number(mind._replace(promises=kept)) - key[1]
            state += change << shift
        return state

    def _broken(self, state: int) -> str:
        """The property that does not hold in a state; states in which the same was said are examined once."""
        view, lost = 0, False
        for shift in self._shifts:
            mind = state >> shift & MASK
            shown = self._views.get(mind)
            if shown is None:
                whole = self._minds.all[mind]
                shown = self._seen_by_properties.of((whole.votes, whole.last, whole.broken, whole.lost))
                shown = self._views[mind] = shown << 1 | whole.lost
            view, lost = view << WIDTH | shown >> 1, lost or bool(shown & 1)
        if lost:  # then what was proposed matters, too
            view |= (state >> self._top) + 1 << self._top
        rule = self._rules.get(view)
        if rule is None:
            minds, board = self._unpack(state)
            rule = self._rules[view] = self._properties.broken(minds, board)
        return rule

    def _way(self, state: int, known: dict[int, int]) -> list[str]:
        """The steps from the start to a state, in words."""
        steps: list[str] = []
        while (before := known[state]) >= 0:
            steps.append(next(self._between(before, state)))
            state = before
        return steps[::-1]

    def _between(self, before: int, after: int) -> Iterator[str]:
        minds, board = self._unpack(before)
        steps = [(voter, step) for voter, mind in enumerate(minds) for step in self._steps.of(voter, mind, board)]
        for ballot, turn in enumerate(board.turns):
            if turn.open:
                steps += [(self._world.leaders[ballot], s) for s in self._proposals.of(ballot, minds, board) if s[0]]
        for voter, step in steps:
            delta, closed = self._move(before, voter, step)
            if self._without_promises(before + delta, closed) == after:
                yield step[0]

    def _number(self, mind: Mind) -> int:
        number = self._minds.of(mind)
        if number > MASK:
            raise OverflowError(f"more than {MASK} states of one voter: choose fewer ballots, or raise WIDTH")
        return number

    def _pack(self, minds: Sequence[Mind], board: Board) -> int:
        packed = self._boards.of(board) << self._top
        return packed + sum(self._number(mind) << shift for mind, shift in zip(minds, self._shifts, strict=True))

    def _unpack(self, state: int) -> tuple[list[Mind], Board]:
        return [self._minds.all[state >> shift & MASK] for shift in self._shifts], self._boards.all[state >> self._top]


def search(voters: int, ballots: int, *, losses: int = 1) -> Result:
    """Walk every state, or up to the first violation.

    With an odd electorate seniority decides nothing and the order of the leaders is a matter of names; with an even
    one, every place of the most senior voter in that order is searched.
    """
    states, seconds = 0, 0.0
    for first in range(1 if voters % 2 else voters):
        result = Search(World(voters, ballots, first), losses).run()
        states, seconds = states + result.states, seconds + result.seconds
        if result.violation is not None:
            break
    return Result(states, seconds, result.violation)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m atoll.p2p.simulation.voting", description=__doc__.splitlines()[0])
    parser.add_argument("--voters", type=int, default=3, choices=range(1, 6))
    parser.add_argument("--ballots", type=int, default=3, choices=range(1, 9))
    parser.add_argument("--losses", type=int, default=1, help="how many voters may lose their disk (default 1)")
    args = parser.parse_args(arguments)
    result = search(args.voters, args.ballots, losses=args.losses)
    print(f"{args.voters} voters, {args.ballots} ballots: {result.states} states in {result.seconds:.1f} s")
    if result.violation is None:
        print("no violation")
        return 0
    print(f"violation: {result.violation.rule}")
    for number, step in enumerate(result.violation.steps, 1):
        print(f"{number:3}. {step}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
