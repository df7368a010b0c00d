"""What the tree of links takes in, and what it refuses: every lie that a peer could sign is turned away by `add`.

A book writes certificates and FORKs of peers named by letters as the rules want them, unless a test asks for a lie.
"""

import dataclasses

import pytest

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Chain
from atoll.protocol.certificate import (
    FIRST_JOURNAL,
    Certificate,
    Contribution,
    PartResult,
    Value,
    Vote,
    Voter,
    bitmap,
    round_tokens,
)
from atoll.protocol.digest import ZERO_DIGEST
from atoll.protocol.errors import MalformedError, SignatureError
from atoll.protocol.fork import Fork, LastPromise, Rank
from atoll.protocol.identity import Identity
from atoll.protocol.layout import Layout
from atoll.protocol.manifest import ExchangeSettings
from atoll.protocol.standing import Record, Standing, sign_ticket

LETTERS = "abcdefgh"
KEYS = dict(zip(LETTERS, sorted((Identity(bytes([i + 1]) * 32) for i in range(8)), key=lambda k: k.peer_id),
                strict=True))
PEER = {letter: key.peer_id for letter, key in KEYS.items()}
LETTER = {peer: letter for letter, peer in PEER.items()}
OWNER = Identity(b"\xee" * 32)
RUN, STATE = bytes([7]) * 32, bytes([8]) * 32
LAYOUT = Layout(2500, 1024)


def journal(letter, number=1):
    return bytes([number]) + letter.encode() * 15


class Book:
    def __init__(self, voters="abc", **settings):
        settings = {"part_elements": 1024, "retain_rounds": 2, **settings}
        self.chain = Chain(RUN, electorates.genesis(tuple(PEER[v] for v in voters)), STATE, LAYOUT,
                           owner=OWNER.peer_id, settings=ExchangeSettings(**settings))

    def record(self, letter, kind=Standing.JOIN, *, base=None, ticket=b"", number=1):
        return Record.sign(KEYS[letter], base or self.chain.tip.base, kind, journal(letter, number), ticket)

    def joins(self, letters):
        return [self.record(letter) for letter in letters]

    def value(self, contributing="abc", records=None, *, tip=None, salt=0, **lies):
        tip = tip or self.chain.tip
        listed = tuple(Contribution(PEER[x], bytes([salt]) + bytes(31), 100, journal(x)) for x in sorted(contributing))
        everybody = bitmap(set(range(len(listed))), len(listed))
        parts = tuple(PartResult(everybody, bytes([20 + i + salt]) * 32 if listed else ZERO_DIGEST) for i in range(3))
        decided = tip.standings.decided_by
        attendance = bitmap(set(range(len(decided))), len(decided))
        records = self.joins(LETTER[p] for p in tip.voters) if records is None and tip.round == 0 else records or []
        records = tuple(sorted(records))
        after = electorates.successor(tip.standings, self.chain.policy, listed, attendance, records)
        tokens = tip.tokens + round_tokens(listed, parts, self.chain.sizes)
        made = Value(tip.id, tip.round + 1, tokens, listed, parts, attendance, records, after.electorate, STATE)
        return dataclasses.replace(made, **lies)

    def votes(self, value, voters, ballot=0, journals=None):
        named = {LETTER[entry.peer]: entry.journal for entry in self.chain.tip_of(value.parent).electorate}
        return tuple(Vote.cast(KEYS[v], (journals or named).get(v, journal(v)), ballot, value) for v in voters)

    def certificate(self, voters="abc", value=None, ballot=0, **wanted):
        value = value or self.value(**wanted)
        return Certificate(value, ballot, self.votes(value, voters, ballot))

    def certify(self, voters="abc", **wanted):
        link = self.certificate(voters, **wanted)
        self.chain.append(link)
        return link

    def promise(self, letter, rank=Rank.VOTERS, said=None, number=1, parent=None, nonce=bytes(16)):
        parent = parent or self.chain.tip.id
        first = self.chain.tip_of(parent).round == 0 and number == 1
        under = FIRST_JOURNAL if first else journal(letter, number)
        return LastPromise.sign(KEYS[letter], parent, nonce, rank, under, said)

    def fork(self, signers="ab", rank=Rank.VOTERS, value=None, said=None):
        """`said` by letter: (ballot, value id)."""
        promises = tuple(self.promise(x, rank, (said or {}).get(x)) for x in sorted(signers))
        return Fork(self.chain.tip.id, bytes(16), rank, promises, value)


@pytest.fixture
def book():
    """After one round: a, b and c vote under journals of their own."""
    made = Book()
    made.certify()
    return made


# Certificates.


def test_a_chain_grows_by_what_the_rules_give(book):
    first = book.chain.tip
    second = book.certify("ab")
    tip = book.chain.tip
    assert (tip.id, tip.base, tip.round, tip.tokens) == (second.id, second.id, 2, 600)
    assert tip.voters == first.voters
    assert book.chain.lineage(tip.id)[-1] is second
    assert book.chain.child(first.id) is second
    assert book.chain.add(second) == tip, "known already"


def test_a_link_behind_an_unknown_parent_is_not_taken(book):
    link = book.certificate("ab")
    other = Book()
    with pytest.raises(KeyError):
        other.chain.add(link)
    with pytest.raises(KeyError):
        book.chain.add(Fork(bytes(32), bytes(16), Rank.VOTERS, (), None))


@pytest.mark.parametrize(
    "lie",
    [
        {"round": 3},
        {"round": 1},
        {"tokens": 599},
        {"tokens": 900},
        {"electorate": (Voter(PEER["a"], journal("a")),)},
        {"electorate": tuple(Voter(PEER[x], journal(x)) for x in "bac")},
        {"electorate": tuple(Voter(PEER[x], journal(x)) for x in "abcd")},
        {"electorate": (*(Voter(PEER[x], journal(x)) for x in "ab"), Voter(PEER["c"], journal("c", 2)))},
        {"attendance": b""},
        {"attendance": b"\x07\x00"},
        {"attendance": b"\x0f"},
        {"parts": ()},
        {"parts": tuple(PartResult(b"\x07", bytes([i]) * 32) for i in range(4))},
        {"parts": tuple(PartResult(b"\x07", ZERO_DIGEST) for _ in range(3))},
    ],
    ids=["a later round", "an earlier round", "too few tokens", "too many tokens", "voters left out", "another order",
         "a voter too many", "another journal", "no attendance", "too wide", "a spare bit", "no parts",
         "a part too many", "contributions that leave the state"],
)
def test_a_value_that_does_not_follow_from_its_parent_is_refused_whoever_voted_for_it(book, lie):
    with pytest.raises(MalformedError):
        book.chain.add(book.certificate(value=book.value(**lie)))


def test_an_empty_value_that_moves_the_parts_is_refused(book):
    parts = tuple(PartResult(b"", bytes([i + 1]) * 32) for i in range(3))
    with pytest.raises(MalformedError):
        book.chain.add(book.certificate(value=book.value(contributing="", parts=parts)))
    book.certify(contributing="")
    assert book.chain.tip.tokens == 300


@pytest.mark.parametrize(
    "forged",
    [
        lambda book: book.record("a", Standing.LEAVE, base=RUN),  # of an earlier round
        lambda book: dataclasses.replace(book.record("b", Standing.LEAVE), peer=PEER["a"]),
        lambda book: dataclasses.replace(book.record("a"), kind=Standing.LEAVE),
        lambda book: dataclasses.replace(book.record("a"), journal=journal("a", 2)),
        lambda book: dataclasses.replace(book.record("a", Standing.LEAVE), signature=bytes(64)),
    ],
    ids=["another base", "another peer", "another wish", "another journal", "no signature"],
)
def test_a_record_that_its_peer_did_not_sign_under_this_base_is_refused(book, forged):
    with pytest.raises(SignatureError):
        book.chain.add(book.certificate(value=book.value(records=[forged(book)])))


def test_a_wish_that_the_rules_do_not_grant_is_no_reason_to_name_another_electorate(book):
    """A JOIN without a ticket or rounds in a row is void, and one who names the newcomer all the same is refused."""
    value = book.value(records=[book.record("d")])
    assert [LETTER[v.peer] for v in value.electorate] == ["a", "b", "c"]
    lie = dataclasses.replace(value, electorate=(*value.electorate, Voter(PEER["d"], journal("d"))))
    with pytest.raises(MalformedError):
        book.chain.add(book.certificate(value=lie))
    book.chain.add(book.certificate(value=value))


def test_with_the_owners_ticket_the_newcomer_votes_from_the_next_round_on(book):
    ticket = sign_ticket(OWNER, RUN, PEER["d"])
    book.certify("ab", records=[book.record("d", ticket=ticket)])
    book.certify("abd")
    with pytest.raises(SignatureError, match="no quorum"):
        book.chain.add(book.certificate("cd"))


# Votes.


@pytest.mark.parametrize(
    "votes",
    [
        lambda book, value: book.votes(value, "a"),
        lambda book, value: book.votes(value, "abd"),
        lambda book, value: book.votes(value, "abb"),
        lambda book, value: book.votes(value, "ab", journals={"a": journal("a"), "b": journal("b", 2)}),
        lambda book, value: book.votes(value, "ab", journals={"a": journal("a"), "b": FIRST_JOURNAL}),
        lambda book, value: tuple(dataclasses.replace(v, signature=bytes(64)) for v in book.votes(value, "ab")),
        lambda book, value: (*book.votes(value, "a"), dataclasses.replace(book.votes(value, "c")[0], peer=PEER["b"],
                                                                          journal=journal("b"))),
        lambda book, value: (),
    ],
    ids=["a minority", "an outsider", "one twice", "another journal", "the first journal", "forged", "in other names",
         "none"],
)
def test_votes_that_are_no_quorum_of_the_electorate_under_its_journals_certify_nothing(book, votes):
    value = book.value()
    with pytest.raises(SignatureError):
        book.chain.add(Certificate(value, 0, votes(book, value)))


def test_votes_of_two_ballots_certify_nothing(book):
    value = book.value()
    mixed = Certificate(value, 0, (*book.votes(value, "a", 0), *book.votes(value, "b", 1)))
    with pytest.raises(SignatureError):
        book.chain.add(Certificate.decode(mixed.encode()))


def test_exactly_half_certifies_only_with_the_most_senior():
    book = Book("abcd")
    with pytest.raises(SignatureError):
        book.chain.add(book.certificate("bc"))
    book.chain.add(book.certificate("ad"))


def test_the_first_journal_is_good_for_the_first_certificate_only():
    book = Book()
    book.certify("abc", records=book.joins("ab"))  # c did not name its journal
    assert [entry.journal for entry in book.chain.tip.electorate] == [journal("a"), journal("b"), FIRST_JOURNAL]
    with pytest.raises(SignatureError):
        book.chain.add(book.certificate("ac"))
    book.chain.add(book.certificate("ab"))


def test_a_new_journal_keeps_seniority_and_does_not_vote_before_it_is_named(book):
    fresh = {"a": journal("a", 2), "b": journal("b")}
    value = book.value(records=[book.record("a", number=2)])
    with pytest.raises(SignatureError):
        book.chain.add(Certificate(value, 0, book.votes(value, "ab", journals=fresh)))
    book.chain.append(Certificate(value, 0, book.votes(value, "bc")))
    assert book.chain.tip.electorate[0] == Voter(PEER["a"], journal("a", 2))
    later = book.value()
    with pytest.raises(SignatureError):
        book.chain.add(Certificate(later, 0, book.votes(later, "ab", journals={"a": journal("a"), "b": journal("b")})))
    book.chain.append(Certificate(later, 0, book.votes(later, "ab", journals=fresh)))


# FORKs.


def test_survivors_go_on_behind_a_fork_with_the_parents_counters_and_state(book):
    before = book.chain.tip
    book.chain.append(book.fork("ac"))
    tip = book.chain.tip
    assert tip.is_fork
    assert (tip.base, tip.round, tip.tokens, tip.state) == (before.id, before.round, before.tokens, before.state)
    assert [LETTER[peer] for peer in tip.voters] == ["a", "c"]
    assert tip.bound is None
    book.certify("ac", contributing="ac")
    assert book.chain.tip.round == before.round + 1


@pytest.mark.parametrize(
    "bad",
    [
        lambda book: book.fork("ad"),
        lambda book: book.fork("d"),
        lambda book: dataclasses.replace(
            book.fork("ab"), promises=(book.promise("a"), dataclasses.replace(book.promise("b"), signature=bytes(64)))),
        lambda book: dataclasses.replace(
            book.fork("a"), promises=(dataclasses.replace(book.promise("d"), peer=PEER["a"]),)),
    ],
    ids=["a stranger among them", "a stranger", "forged", "in another's name"],
)
def test_a_fork_signed_by_anybody_but_the_voters_is_refused(book, bad):
    with pytest.raises((MalformedError, SignatureError)):
        book.chain.add(bad(book))


def test_contributors_sign_rank_two_if_the_last_certificates_name_them():
    book = Book()
    book.certify(contributing="abcd")
    book.certify(contributing="abce")
    book.chain.add(book.fork("de", Rank.CONTRIBUTORS))
    book.certify(contributing="abc")  # the horizon is two certificates: d is forgotten
    book.chain.add(book.fork("e", Rank.CONTRIBUTORS))
    with pytest.raises(MalformedError):
        book.chain.add(book.fork("d", Rank.CONTRIBUTORS))


def test_anybody_signs_rank_three_but_not_at_genesis(book):
    tip = book.chain.add(book.fork("fgh", Rank.HOLDERS))
    assert [LETTER[peer] for peer in tip.voters] == ["f", "g", "h"]
    with pytest.raises(MalformedError):
        Book().chain.add(Book().fork("fgh", Rank.HOLDERS))
    with pytest.raises(MalformedError):
        Book().chain.add(Book().fork("fgh", Rank.CONTRIBUTORS))


def test_a_fork_without_promises_or_with_one_for_another_ballot_is_malformed(book):
    whole = book.fork("ab")
    whole.check_form()
    for promises in (
        (), whole.promises[::-1], (whole.promises[0],) * 2, (book.promise("a", nonce=b"n" * 16),),
        (book.promise("a", Rank.HOLDERS),), (book.promise("a", parent=RUN),),
    ):
        with pytest.raises(MalformedError):
            dataclasses.replace(whole, promises=promises).check_form()


def test_a_fork_is_bound_to_what_its_signers_accepted_in_the_highest_ballot(book):
    low, high, other = book.value(), book.value(salt=1), book.value(salt=2)
    said = {"a": (0, low.id), "b": (3, high.id)}
    for lie in (None, low, other):
        with pytest.raises(MalformedError):
            book.chain.add(book.fork("ab", said=said, value=lie))
    with pytest.raises(MalformedError):
        book.chain.add(book.fork("ab", value=low))  # of which nobody says anything
    book.chain.append(book.fork("ab", said=said, value=high))
    assert book.chain.tip.bound == high


def test_what_was_accepted_under_another_journal_is_no_evidence(book):
    value = book.value()
    promises = (book.promise("a"), book.promise("b", said=(0, value.id), number=2))
    with pytest.raises(MalformedError):
        book.chain.add(Fork(book.chain.tip.id, bytes(16), Rank.VOTERS, promises, value))
    tip = book.chain.add(Fork(book.chain.tip.id, bytes(16), Rank.VOTERS, promises, None))
    assert tip.bound is None


def test_evidence_that_does_not_follow_from_the_parent_is_refused(book):
    bad = book.value(tokens=1)
    with pytest.raises(MalformedError):
        book.chain.add(book.fork("ab", said={"a": (0, bad.id)}, value=bad))


def test_the_first_certificate_behind_a_bound_fork_repeats_the_outcome_and_nothing_else(book):
    inherited = book.value("ab", salt=1)
    book.chain.append(book.fork("ab", said={"a": (0, inherited.id)}, value=inherited))
    for lie in (book.value("ab"), book.value("", salt=1), book.value("ab", salt=1, state=bytes(32))):
        with pytest.raises(MalformedError, match="bound"):
            book.chain.add(book.certificate("ab", value=lie))
    outcome = book.value("ab", salt=1)  # the parent and the electorate are another
    assert outcome.id != inherited.id
    book.chain.append(book.certificate("ab", value=outcome))
    book.certify("ab", contributing="ab")
    assert book.chain.tip.bound is None


def test_a_fork_behind_a_bound_fork_may_forget_only_what_nobody_signed_for(book):
    """The second FORK's parent is the first: its signers are bound anew only by what they accepted behind that."""
    inherited = book.value("ab", salt=1)
    book.chain.append(book.fork("ab", said={"a": (0, inherited.id)}, value=inherited))
    second = Fork(book.chain.tip.id, bytes(16), Rank.VOTERS, (book.promise("b"),), None)
    assert book.chain.add(second).base == book.chain.tip.base


# Where this peer stands.


def test_moving_between_lineages_changes_the_path_and_forgets_nothing(book):
    root = book.chain.tip
    left = book.certify("ab", contributing="ab")
    book.chain.move(root.id)
    book.chain.append(book.fork("c"))
    right = book.certify("c", contributing="c")
    assert book.chain.on_path(root.id)
    assert not book.chain.on_path(left.id)
    assert book.chain.buried(root.id)
    book.chain.move(left.id)
    assert book.chain.child(root.id) is left
    assert not book.chain.on_path(right.id)
    assert right.id in book.chain
    assert book.chain.lineages.best == left.id, "three voters of the branching outweigh one"


def test_a_parent_is_buried_by_a_certificate_and_not_by_a_fork(book):
    root = book.chain.tip
    book.chain.append(book.fork("ab"))
    assert not book.chain.buried(root.id)
    fork = book.chain.tip
    book.certify("ab", contributing="ab")
    assert book.chain.buried(root.id)
    assert book.chain.buried(fork.id)
    assert not book.chain.buried(book.chain.tip.id)
