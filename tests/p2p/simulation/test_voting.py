"""The exhaustive search passes the shipped rules and finds every one of them broken on purpose."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round import synod
from atoll.p2p.round.synod import Acceptor, Proposer, Tally
from atoll.p2p.simulation import voting, voting_model
from atoll.p2p.simulation.voting import Properties, search
from atoll.p2p.simulation.voting_model import Board, Mind, Turn, World
from atoll.protocol.fork import Fork

is_quorum, accept, add, certificate = electorates.is_quorum, Acceptor.accept, Tally.add, Tally.certificate


@pytest.mark.parametrize(("voters", "ballots"), [(3, 3), (2, 4)])
def test_no_interleaving_breaks_the_shipped_rules(voters, ballots):
    result = search(voters, ballots)
    assert result.violation is None
    assert result.states > 25_000, "the search has lost most of its states"


def quorum_of_the_leaders_own_list(electorate, voters):
    lists = itertools.combinations(electorate, len(electorate) - 1)
    return any(is_quorum(chosen, voters) for chosen in lists)


def quorum_of_those_who_accepted(tally, values, electorate):
    voted = [votes for (_, name), votes in tally.votes.items() if name in values]
    return any(2 * len(votes) > len(votes) for votes in voted) or None


def lock_without_ballots(acceptor, ballot, value):
    after = accept(acceptor, ballot, value)
    return after and dataclasses.replace(after, accepted=acceptor.accepted or after.accepted)


def any_lock(promises):
    return next((item[1] for item in promises.values() if item is not None), None)


def lock_read_without_a_quorum(proposer, electorate):
    return proposer.value is None and (proposer.ballot == 0 or len(proposer.promises) > 0)


def votes_of_different_ballots_merged(tally, vote, electorate):
    return add(tally, dataclasses.replace(vote, ballot=0), electorate)


def votes_under_any_journal(tally, vote, electorate):
    entry = next(entry for entry in electorate if entry.peer == vote.peer)
    return add(tally, dataclasses.replace(vote, journal=entry.journal), electorate)


def proposes_twice(proposer, electorate):
    return proposer.ballot == 0 or is_quorum(electorate, proposer.promises)


def evidence_under_any_journal(promises, electorate):
    return max((p.accepted for p in promises if p.accepted is not None), key=lambda item: item[0], default=None)


def half_is_enough(electorate, voters):
    return 2 * sum(entry.peer in voters for entry in electorate) >= len(electorate)


def accepts_below_its_promise(acceptor, ballot, value):
    after = accept(dataclasses.replace(acceptor, promised=0), ballot, value)
    return after and dataclasses.replace(after, promised=max(ballot, acceptor.promised))


def accepts_two_values_in_a_ballot(acceptor, ballot, value):
    return None if ballot < acceptor.promised or acceptor.left else Acceptor(ballot, (ballot, value))


def promises_below_its_promise(acceptor, ballot):
    return None if acceptor.left else dataclasses.replace(acceptor, promised=ballot)


def anything(*_):
    return True


AGREEMENT = ("two values are chosen", "two values are certified")
MUTATIONS = {
    "quorum of the leader's own list": (
        electorates, "is_quorum", quorum_of_the_leaders_own_list, 3, 1, ("a value is certified that no quorum chose",)),
    "quorum of those who accepted": (
        Tally, "certificate", quorum_of_those_who_accepted, 3, 1, ("a value is certified that no quorum chose",)),
    "exactly half without the tie-break": (
        electorates, "is_quorum", half_is_enough, 2, 1, ("a value is certified that no quorum chose",)),
    "lock without ballots": (Acceptor, "accept", lock_without_ballots, 3, 4, AGREEMENT),
    "any lock instead of the highest ballot": (synod, "binding", any_lock, 3, 3, AGREEMENT),
    "lock read without a quorum": (Proposer, "may_propose", lock_read_without_a_quorum, 3, 2, AGREEMENT),
    "votes of different ballots merged": (
        Tally, "add", votes_of_different_ballots_merged, 3, 2, ("a value is certified that no quorum chose",)),
    "votes forgotten in a restart": (voting_model, "restored", lambda _: Acceptor(), 3, 2, ()),
    "votes counted under a new journal": (
        Tally, "add", votes_under_any_journal, 3, 1, ("a value is certified that no quorum chose",)),
    "promises counted under a new journal": (voting_model, "hears", anything, 3, 2, AGREEMENT),
    "a leader proposes under a new journal": (voting_model, "leads", anything, 3, 2, AGREEMENT),
    "a leader proposes twice in one ballot": (Proposer, "may_propose", proposes_twice, 3, 3, AGREEMENT),
    "a restarted leader opens its ballot again": (
        voting_model, "first_turn", lambda acceptor: acceptor.promised, 3, 3, AGREEMENT),
    "survivors regroup under the same parent": (
        Fork, "id", property(lambda fork: fork.parent), 3, 1, ("survivors of a FORK decide",)),
    "a FORK forgets accepted values": (synod, "evidence", lambda *_: None, 3, 1, ("a FORK of a quorum",)),
    "evidence taken from a new journal": (
        synod, "evidence", evidence_under_any_journal, 3, 1, ("a FORK is bound",)),
    "a last promise that is not kept": (Acceptor, "leave", lambda acceptor: acceptor, 3, 1, ("a vote after the last",)),
    "a vote below a promise": (Acceptor, "accept", accepts_below_its_promise, 3, 2, ("a vote in a ballot below",)),
    "two votes in one ballot": (Acceptor, "accept", accepts_two_values_in_a_ballot, 3, 3, ()),
    "a promise below a promise": (Acceptor, "promise", promises_below_its_promise, 3, 3, ()),
}
