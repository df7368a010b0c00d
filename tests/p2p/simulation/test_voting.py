"""The exhaustive search passes the shipped rules and finds every one of them broken on purpose."""

import dataclasses
import itertools
import re

import pytest

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round import synod
from atoll.p2p.round.synod import Acceptor, Proposer, Tally
from atoll.p2p.simulation import voting_model
from atoll.p2p.simulation.voting import Properties, Search, main, search
from atoll.p2p.simulation.voting_model import Board, Mind, Turn, World
from atoll.protocol.fork import Fork

is_quorum, accept, add = electorates.is_quorum, Acceptor.accept, Tally.add


@pytest.mark.parametrize(("voters", "ballots", "first"), [(3, 3, 0), (2, 4, 0), (2, 4, 1)])
def test_no_interleaving_breaks_the_shipped_rules(voters, ballots, first):
    """Nor has the search lost states: a value first proposed in any ballot is voted for in any later one."""
    found = Search(World(voters, ballots, first), losses=1)
    result = found.run()
    assert result.violation is None
    assert result.states > 10_000
    votes = {vote for mind in found.minds for vote in mind.votes}
    assert votes == {(ballot, (origin, 0)) for ballot in range(ballots) for origin in range(ballot + 1)}
    assert any(mind.last and mind.lost for mind in found.minds)


def quorum_of_the_leaders_own_list(electorate, voters):
    lists = itertools.combinations(electorate, len(electorate) - 1)
    return any(is_quorum(chosen, voters) for chosen in lists)


def quorum_of_those_who_accepted(tally, values, electorate):
    """Whoever accepted is always more than half of whoever accepted."""
    return any(votes for (_, name), votes in tally.votes.items() if name in values)


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


def any_evidence(promises, electorate):
    entries = {entry.peer: entry.journal for entry in electorate}
    return next((p.accepted for p in promises if p.accepted is not None and entries[p.peer] == p.journal), None)


def half_is_enough(electorate, voters):
    return 2 * sum(entry.peer in voters for entry in electorate) >= len(electorate)


def accepts_below_its_promise(acceptor, ballot, value):
    after = accept(dataclasses.replace(acceptor, promised=0), ballot, value)
    return after and dataclasses.replace(after, promised=max(ballot, acceptor.promised))


def promises_below_its_promise(acceptor, ballot):
    return None if acceptor.left else dataclasses.replace(acceptor, promised=ballot)


def anything(*_):
    return True


def forgets_all_but_that_it_left(acceptor):
    return Acceptor(left=acceptor.left)


def forgets_that_it_left(acceptor):
    return dataclasses.replace(acceptor, left=False)


# Rule that is broken: (where, what is put in its place, voters, ballots, how it shows).
CERTIFIED = "a value is certified that no quorum chose"
EVIDENCE = "a FORK of a quorum is bound to"
MUTATIONS = {
    "quorum of the leader's own list": (electorates, "is_quorum", quorum_of_the_leaders_own_list, 3, 1, CERTIFIED),
    "quorum of those who accepted": (Tally, "certificate", quorum_of_those_who_accepted, 3, 1, CERTIFIED),
    "exactly half without the tie-break": (electorates, "is_quorum", half_is_enough, 2, 1, CERTIFIED),
    "lock without ballots": (Acceptor, "accept", lock_without_ballots, 3, 2, EVIDENCE),
    "any lock instead of the highest ballot": (synod, "binding", any_lock, 3, 3, "two values are chosen"),
    "lock read without a quorum": (
        Proposer, "may_propose", lock_read_without_a_quorum, 2, 2, "two values are chosen"),
    "votes of different ballots merged": (Tally, "add", votes_of_different_ballots_merged, 3, 2, CERTIFIED),
    "votes forgotten in a restart": (voting_model, "restored", forgets_all_but_that_it_left, 3, 2, ""),
    "last promise forgotten in a restart": (
        voting_model, "restored", forgets_that_it_left, 2, 1, "a vote after the last promise"),
    "votes counted under a new journal": (Tally, "add", votes_under_any_journal, 3, 1, CERTIFIED),
    "promises counted under a new journal": (voting_model, "hears", anything, 2, 2, EVIDENCE),
    "a leader proposes under a new journal": (voting_model, "leads", anything, 3, 1, EVIDENCE),
    "a leader proposes twice in one ballot": (Proposer, "may_propose", proposes_twice, 3, 2, EVIDENCE),
    "a restarted leader opens its ballot again": (
        voting_model, "first_turn", lambda acceptor: acceptor.promised, 3, 2, EVIDENCE),
    "survivors regroup under the same parent": (
        Fork, "id", property(lambda fork: fork.parent), 2, 1, "survivors of a FORK decide"),
    "a FORK forgets accepted values": (synod, "evidence", lambda *_: None, 2, 1, EVIDENCE),
    "a FORK takes any accepted value": (synod, "evidence", any_evidence, 3, 3, EVIDENCE),
    "evidence taken from a new journal": (
        synod, "evidence", evidence_under_any_journal, 2, 1, "a FORK is bound to"),
    "a last promise that is not kept": (
        Acceptor, "leave", lambda acceptor: acceptor, 2, 1, "a vote after the last promise"),
    "a vote below a promise": (
        Acceptor, "accept", accepts_below_its_promise, 2, 2, "a vote in a ballot below a promise"),
    "a promise below a promise": (
        Acceptor, "promise", promises_below_its_promise, 2, 3, "a vote in a ballot below a promise"),
}
SIZES = {(voters, ballots) for *_, voters, ballots, _ in MUTATIONS.values()}


@pytest.mark.parametrize("rule", MUTATIONS)
def test_a_broken_rule_is_found(rule, monkeypatch):
    where, name, broken, voters, ballots, shown = MUTATIONS[rule]
    monkeypatch.setattr(where, name, broken)
    violation = search(voters, ballots).violation
    assert violation is not None
    assert violation.rule.startswith(shown)
    assert violation.steps


@pytest.mark.parametrize(("voters", "ballots"), sorted(SIZES - {(3, 3)}))  # which is the first test
def test_the_shipped_rules_pass_where_broken_ones_are_found(voters, ballots):
    assert search(voters, ballots).violation is None


def test_two_disks_of_three_may_be_lost():
    assert search(3, 2, losses=2).violation is None


def vote(ballot, label):
    return Mind(votes=frozenset({(ballot, label)}))


def test_chosen_is_what_a_quorum_voted_for_in_one_ballot():
    chosen = Properties(World(3, 2, 0)).chosen
    assert chosen([vote(0, (0, 0)), vote(0, (0, 0)), Mind()]) == {(0, 0)}
    assert chosen([vote(0, (0, 0)), vote(1, (0, 0)), Mind()]) == set()
    assert chosen([vote(0, (0, 0)), Mind(), Mind()]) == set()


def test_half_of_the_voters_choose_only_with_the_most_senior():
    chosen = Properties(World(2, 2, 0)).chosen
    assert chosen([vote(0, (0, 0)), Mind()]) == {(0, 0)}
    assert chosen([Mind(), vote(0, (0, 0))]) == set()


def test_two_chosen_values_are_a_violation():
    minds = [Mind(votes=frozenset({(0, (0, 0)), (1, (1, 0))}))] * 2
    board = Board((Turn(values=((0, 0),)), Turn(values=((1, 0),))), 0)
    assert Properties(World(2, 2, 0)).broken(minds, board).startswith("two values are chosen")


def test_the_command_prints_size_states_and_seconds(capsys):
    assert main(["--voters", "2", "--ballots", "2"]) == 0
    assert re.search(r"2 voters, 2 ballots: \d+ states in \d+\.\d s\nno violation\n", capsys.readouterr().out)


def test_the_command_prints_the_way_to_a_violation(capsys, monkeypatch):
    monkeypatch.setattr(synod, "evidence", lambda *_: None)
    assert main(["--voters", "2", "--ballots", "1"]) == 1
    told = capsys.readouterr().out
    assert "violation: a FORK of a quorum is bound to None" in told
    assert re.search(r"  1\. voter \d proposes in ballot 0\n", told)
