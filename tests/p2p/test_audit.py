"""A log that was tampered with is told by round and rule, whatever was changed; an honest one holds."""

import dataclasses
import re

import pytest

from atoll.p2p.audit import Audit
from atoll.protocol.certificate import Certificate, Contribution, PartResult, Vote, Voter
from atoll.protocol.fork import Fork, LastPromise, Rank
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.standing import Record, Standing

STRANGER = Identity(b"\7" * 32)
NOISE = bytes(64)


def audit(manifest, links):
    found = Audit(manifest)
    for at, link in enumerate(links):
        found.add(link, 100 * at)
    return found


def put(book, at, link):
    return [*book.links[:at], link, *book.links[at + 1 :]]


def change(book, at, **fields):
    """The certificate with fields of its value replaced, its votes as they were."""
    old = book.links[at]
    value = dataclasses.replace(old.value, **fields)
    votes = tuple(dataclasses.replace(vote, certificate=value.id, parent=value.parent) for vote in old.votes)
    return put(book, at, Certificate(value, old.ballot, votes))


def forge(book, at, **fields):
    """The same, and its voters sign it again: only the rules can tell."""
    old = book.links[at]
    value = dataclasses.replace(old.value, **fields)
    votes = tuple(Vote.cast(book.key(vote.peer), vote.journal, old.ballot, value) for vote in old.votes)
    return put(book, at, Certificate(value, old.ballot, votes))


def vote(book, at, which, **fields):
    old = book.links[at]
    votes = list(old.votes)
    votes[which] = dataclasses.replace(votes[which], **fields)
    return put(book, at, dataclasses.replace(old, votes=tuple(votes)))


def recorded(book, at, **fields):
    """The first record of a value with fields replaced, and the value signed again."""
    records = list(book.links[at].value.records)
    records[0] = dataclasses.replace(records[0], **fields)
    return forge(book, at, records=tuple(records))


def promised(book, **fields):
    fork = book.links[4]
    return put(book, 4, dataclasses.replace(fork, promises=(dataclasses.replace(fork.promises[0], **fields),)))


def test_an_honest_log_holds(told):
    found = audit(told.manifest, told.links)
    assert (found.problems, found.notices, found.unchecked) == ([], [], 0)
    assert found.links == len(told.links)
    assert (found.tip.round, found.tip.forks, found.tip.tokens) == (7, 1, told.chain.tip.tokens)
    assert [certificate.value.round for certificate in found.certificates] == [1, 2, 3, 4, 5, 6, 7]
    assert len(found.tip.voters) == 2, "the ticket let one in again"


FLIPPED = {
    "round": lambda b: change(b, 2, round=9),
    "tokens": lambda b: change(b, 2, tokens=b.links[2].value.tokens + 1),
    "a contributor's tokens": lambda b: change(b, 2, contributions=(
        dataclasses.replace(b.links[2].value.contributions[0], tokens=99), *b.links[2].value.contributions[1:])),
    "a root": lambda b: change(b, 2, contributions=(
        dataclasses.replace(b.links[2].value.contributions[0], root=bytes(32)), *b.links[2].value.contributions[1:])),
    "a contribution": lambda b: change(b, 2, contributions=()),
    "a result": lambda b: change(b, 2, parts=(
        dataclasses.replace(b.links[2].value.parts[0], digest=b"x" * 32), *b.links[2].value.parts[1:])),
    "who is in a part": lambda b: change(b, 2, parts=(PartResult(b"\1", b"x" * 32), *b.links[2].value.parts[1:])),
    "number of parts": lambda b: change(b, 2, parts=b.links[2].value.parts[:1]),
    "attendance": lambda b: change(b, 2, attendance=b"\1"),
    "width of attendance": lambda b: change(b, 2, attendance=b""),
    "records": lambda b: change(b, 2, records=()),
    "electorate": lambda b: change(b, 2, electorate=b.links[2].value.electorate[:2]),
    "state": lambda b: change(b, 2, state=bytes(32)),
}


@pytest.mark.parametrize("field", FLIPPED)
def test_any_field_of_a_value_is_covered_by_the_votes(told, field):
    found = audit(told.manifest, FLIPPED[field](told))
    assert {(p.round, p.where, p.byte) for p in found.problems} == {(3, "round 3", 200)}
    assert "none of its 3 votes is signed" in found.problems[-1].message
    assert (found.tip.round, found.links, found.unchecked) == (2, 2, 5)


def extra(b, at):
    return Voter(STRANGER.peer_id, bytes(16)), *b.links[at].value.electorate


FORGED = {
    "round": (2, lambda b: forge(b, 2, round=9), "says round 9, its parent is of round 2"),
    "tokens": (2, lambda b: forge(b, 2, tokens=b.links[2].value.tokens - 1), "tokens are not its parent's .* instead"),
    "parts": (2, lambda b: forge(b, 2, parts=b.links[2].value.parts[:1]), "has 1 parts, the run has 3"),
    "empty": (2, lambda b: forge(b, 2, contributions=(), parts=tuple(
        PartResult(b"", part.digest) for part in b.links[2].value.parts)), "leaves parts as they are|contributions"),
    "attendance": (2, lambda b: forge(b, 2, attendance=b"\xff"), "attendance does not fit"),
    "no attendance": (2, lambda b: forge(b, 2, attendance=b""), "attendance does not fit"),
    "a voter let in": (1, lambda b: forge(b, 1, electorate=extra(b, 1)), "another electorate.*does not belong there"),
    "a voter left out": (1, lambda b: forge(b, 1, electorate=b.links[1].value.electorate[1:]), "is missing"),
    "seniority": (1, lambda b: forge(b, 1, electorate=b.links[1].value.electorate[::-1]), "another electorate"),
    "a voter's journal": (1, lambda b: forge(b, 1, electorate=(
        dataclasses.replace(b.links[1].value.electorate[0], journal=b"z" * 16),
        *b.links[1].value.electorate[1:])), "under another journal"),
    "admission without its record": (2, lambda b: forge(b, 2, records=()), "another electorate.*does not belong"),
    "a record's kind": (2, lambda b: recorded(b, 2, kind=Standing.LEAVE), "the LEAVE of 12D3.* is not signed"),
    "a record's journal": (2, lambda b: recorded(b, 2, journal=b"q" * 16), "the JOIN of 12D3.* is not signed"),
    "a record's signature": (2, lambda b: recorded(b, 2, signature=NOISE), "the JOIN of 12D3.* is not signed"),
    "another's ticket": (6, lambda b: recorded(b, 6, ticket=b.ticket(1, owner=2)), "another electorate"),
    "no ticket": (6, lambda b: recorded(b, 6, ticket=b""), "another electorate"),
    "what a FORK is bound to": (5, lambda b: forge(b, 5, state=b"s" * 32), "not the one that the FORK before it"),
}


@pytest.mark.parametrize("field", FORGED)
def test_what_its_own_voters_signed_against_the_rules_is_told_by_the_rule(told, field):
    at, tamper, words = FORGED[field]
    found = audit(told.manifest, tamper(told))
    assert len(found.problems) == 1, found.problems
    assert re.search(words, found.problems[0].message), found.problems[0]
    assert (found.problems[0].byte, found.unchecked) == (100 * at, len(told.links) - at - 1)
    assert found.problems[0].where == f"round {found.tip.round + 1}"


def name_of_vote(book, at, which):
    return peer_name(book.links[at].votes[which].peer)


def test_votes_are_looked_at_one_by_one(told):
    cast = told.links[1].votes
    name = name_of_vote(told, 1, 1)
    cases = {
        f"the vote of {name} is not signed by that key": vote(told, 1, 1, signature=NOISE),
        f"carries a vote of {peer_name(STRANGER.peer_id)}, which is not in the electorate":
            vote(told, 1, 1, peer=STRANGER.peer_id),
        f"carries a vote of {name} under another journal": vote(told, 1, 1, journal=b"j" * 16),
        f"carries two votes of {name}": put(told, 1, dataclasses.replace(told.links[1], votes=(cast[1], *cast))),
        "carries 1 votes, which is no quorum of 3":
            put(told, 1, dataclasses.replace(told.links[1], votes=(cast[1],))),
        "carries 0 votes": put(told, 1, dataclasses.replace(told.links[1], votes=())),
        "none of its 3 votes": put(told, 1, dataclasses.replace(told.links[1], ballot=4, votes=tuple(
            dataclasses.replace(one, ballot=4) for one in cast))),
    }
    for words, links in cases.items():
        found = audit(told.manifest, links)
        assert words in str(found.problems[0]), (words, found.problems)
        assert all(problem.where == "round 2" for problem in found.problems)
        assert found.tip.round == 1


def test_votes_may_be_fewer_and_still_a_quorum(told):
    fewer = dataclasses.replace(told.links[1], votes=told.links[1].votes[:2])
    assert audit(told.manifest, put(told, 1, fewer)).problems == []


def test_a_fork_is_signed_by_those_who_may_and_bound_by_what_they_said(told):
    fork = told.links[4]
    signer, accepted = fork.promises[0], fork.value
    mine, theirs = peer_name(signer.peer), peer_name(STRANGER.peer_id)
    foreign = LastPromise.sign(STRANGER, fork.parent, fork.nonce, Rank.VOTERS, bytes(16), None)
    silent = LastPromise.sign(told.keys[0], fork.parent, fork.nonce, Rank.VOTERS, signer.journal, None)
    other = dataclasses.replace(accepted, state=b"o" * 32)
    cases = {
        f"the last promise of {mine} is not signed": promised(told, signature=NOISE),
        f"the last promise of {mine} is not": promised(told, accepted=None),
        f"{theirs} may not sign a FORK of rank 1 (VOTERS)":
            put(told, 4, dataclasses.replace(fork, promises=(foreign,), value=None)),
        "does not carry the value that its promises are evidence of":
            put(told, 4, dataclasses.replace(fork, value=None)),
        "does not carry the value": put(told, 4, dataclasses.replace(fork, value=other)),
        "does not carry": put(told, 4, dataclasses.replace(fork, promises=(silent,))),
    }
    for words, links in cases.items():
        found = audit(told.manifest, links)
        assert words in found.problems[0].message, (words, found.problems)
        assert (found.problems[0].where, found.problems[0].round) == ("the FORK behind round 4", 4)
        assert found.unchecked == 3


def test_holders_may_not_fork_at_genesis(book):
    run = book()
    promise = LastPromise.sign(STRANGER, run.chain.tip.id, bytes(16), Rank.HOLDERS, bytes(16), None)
    found = audit(run.manifest, [Fork(run.chain.tip.id, bytes(16), Rank.HOLDERS, (promise,), None)])
    assert "may not sign a FORK of rank 3" in found.problems[0].message
    assert found.problems[0].where == "the FORK behind genesis"


def test_links_stand_in_their_order_and_none_is_missing(told, book):
    links = told.links
    cases = [
        (links[1:], "round 1", "another run's log, or its first links are missing", 0),
        ([*links[:2], *links[3:]], "round 3", "the link between it and round 2 is missing", 2),
        ([*links[:4], *links[5:]], "round 5", "missing or was changed", 4),
        ([links[0], links[2], links[1], *links[3:]], "round 2", "the link between it and round 1 is missing", 1),
        ([*links[:3], *links[1:]], "round 4", "belongs behind round 1, and stands behind round 3", 3),
        ([*links[:5], links[4]], "the FORK behind the FORK behind round 4", "belongs behind round 4", 5),
        (list(reversed(links)), "round 1", "belongs|begins behind", 0),
    ]
    for given, where, words, held in cases:
        found = audit(told.manifest, given)
        assert found.problems[0].where == where
        assert re.search(words, found.problems[0].message), found.problems
        assert (found.links, found.unchecked) == (held, len(given) - held - 1)
    other = book(seed=2)
    assert "another run's log" in audit(other.manifest, links).problems[0].message


def test_a_part_of_a_log_from_its_beginning_holds(told):
    for end in range(len(told.links) + 1):
        assert audit(told.manifest, told.links[:end]).problems == []


def test_odd_things_that_break_no_rule_are_notices(book):
    run = book(admit_after=2)
    first = run.certify()
    run.certify((0, 1, 2, 3), [run.record(3, ticket=run.ticket(3, owner=1))])
    value = run.value((0, 1, 2))
    again = dataclasses.replace(first.value.contributions[0], tokens=value.contributions[0].tokens)
    run.enter(run.sign(dataclasses.replace(value, contributions=(again, *value.contributions[1:]))))
    found = audit(run.manifest, run.links)
    assert found.problems == []
    assert "ticket of 12D3" in str(found.notices[0])
    assert str(found.notices[0]).startswith("round 2: ")
    assert "same bytes as its one in round 1" in str(found.notices[1])


def test_a_contribution_and_a_record_are_compared_by_their_peers(told):
    records = told.links[0].value.records
    swapped = (dataclasses.replace(records[0], peer=records[1].peer), *records[1:])
    stolen = Record(records[1].peer, records[0].kind, records[0].journal, b"", records[0].signature)
    assert swapped[0] == stolen
    found = audit(told.manifest, forge(told, 0, records=swapped))
    assert f"the JOIN of {peer_name(records[1].peer)} is not signed" in found.problems[0].message
    listed = told.links[0].value.contributions
    moved = (Contribution(STRANGER.peer_id, *dataclasses.astuple(listed[0])[1:]), *listed[1:])
    assert audit(told.manifest, change(told, 0, contributions=moved)).problems
