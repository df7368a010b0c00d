"""Who votes next (rule 2): told as rounds of a few peers named by letters, the most senior first; and in any story.

A round is told by who contributes to it, who voted on its parent as far as is known, and what records it carries.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.electorate import Policy, Standings
from atoll.protocol.certificate import FIRST_JOURNAL, Contribution, Voter, bitmap
from atoll.protocol.errors import SignatureError
from atoll.protocol.fork import LastPromise, Rank
from atoll.protocol.identity import Identity
from atoll.protocol.manifest import MAX_ELECTORATE
from atoll.protocol.standing import Record, Standing, sign_ticket

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGH"
KEYS = dict(zip(LETTERS, sorted((Identity(bytes([i + 1]) * 32) for i in range(len(LETTERS))),
                                key=lambda key: key.peer_id), strict=True))
LETTER = {key.peer_id: letter for letter, key in KEYS.items()}
RUN, BASE, ROOT = bytes([7]) * 32, bytes([9]) * 32, bytes([5]) * 32
OWNER = Identity(b"\xee" * 32)
POLICY = Policy(RUN, OWNER.peer_id, 3)
WORDS = {"join": Standing.JOIN, "leave": Standing.LEAVE, "cannot": Standing.CANNOT_VOTE}


def journal(letter, number=1):
    return bytes([number]) + letter.encode() * 15


def electorate(letters, number=1):
    return tuple(Voter(KEYS[letter].peer_id, journal(letter, number)) for letter in letters)


def record(letter, word, number=1, *, ticket=b""):
    return Record.sign(KEYS[letter], BASE, WORDS[word], journal(letter, number), ticket)


def ticket(letter, owner=OWNER, run=RUN):
    return sign_ticket(owner, run, KEYS[letter].peer_id)


def after(before, contributing, present, records=(), policy=POLICY):
    """One round on; `present` are those known to have voted on the parent."""
    listed = [Contribution(KEYS[letter].peer_id, ROOT, 1) for letter in sorted(contributing)]
    who = {i for i, peer in enumerate(before.decided_by) if LETTER[peer] in present}
    return electorates.successor(before, policy, listed, bitmap(who, len(before.decided_by)), sorted(records))


def names(standings):
    return "".join(LETTER[entry.peer] for entry in standings.electorate)


def told(voters, *rounds, policy=POLICY):
    """The electorate after each of these rounds; the first follows a round in which all voted and contributed."""
    standings = Standings(electorate(voters), tuple(KEYS[v].peer_id for v in voters),
                          frozenset(KEYS[v].peer_id for v in voters))
    found = []
    for contributing, present, *records in rounds:
        standings = after(standings, contributing, present, records, policy)
        found.append(names(standings))
    return found


# Attendance and eviction. What a round says of attendance is about its parent: silence in two parents evicts.


def test_one_idle_round_does_not_evict():
    assert told("abc", ("ab", "ab"), ("ab", "ab"), ("abc", "ab"), ("ab", "ab"))[-1] == "abc"


def test_two_idle_rounds_evict():
    # the first round's parent still has c's contribution; rounds 1 and 2 are idle, which rounds 2 and 3 attest
    assert told("abc", ("ab", "ab"), ("ab", "ab"), ("ab", "ab")) == ["abc", "abc", "ab"]


def test_a_vote_alone_is_attendance():
    assert told("abc", *[("ab", "abc")] * 5)[-1] == "abc"


def test_a_vote_in_every_other_round_is_enough():
    assert told("abc", *[("ab", "ab"), ("ab", "abc")] * 3)[-1] == "abc"


def test_a_contribution_alone_is_attendance():
    assert told("abc", *[("abc", "ab")] * 5)[-1] == "abc"


def test_a_contribution_in_the_very_value_that_would_evict_saves():
    assert told("abc", ("ab", "ab"), ("ab", "ab"), ("abc", "ab"))[-1] == "abc"


def test_a_partial_contribution_is_attendance():
    """Whoever is listed at all contributed: attendance does not ask in how many parts."""
    assert told("ab", *[("ab", "a")] * 4)[-1] == "ab"
    listed = [Contribution(KEYS["b"].peer_id, ROOT, 1)]
    before = Standings(electorate("ab"), tuple(v.peer for v in electorate("ab")), idle=frozenset({KEYS["b"].peer_id}))
    assert names(electorates.successor(before, POLICY, listed, bitmap({0}, 2), ())) == "ab"


def test_all_of_an_idle_electorate_but_the_most_senior_is_evicted():
    assert told("abc", ("", ""), ("", ""), ("", "")) == ["abc", "abc", "a"]


def test_nobody_is_evicted_for_a_round_before_it_was_a_voter():
    standings = Standings(electorate("ab"), (KEYS["a"].peer_id,), idle=frozenset({KEYS["b"].peer_id}))
    assert names(after(standings, "a", "a")) == "ab"


def test_behind_a_fork_patience_begins_anew():
    before = Standings(electorate("abc"), tuple(v.peer for v in electorate("abc")), idle=frozenset(
        v.peer for v in electorate("abc")))
    promises = tuple(_promise(letter) for letter in "abc")
    forked = electorates.survivors(before, promises, Rank.VOTERS)
    assert names(after(forked, "", "")) == "abc"


# Leaving.


@pytest.mark.parametrize(
    ("voters", "contributing", "present", "records", "expected"),
    [
        ("abc", "abc", "abc", ["c leave"], "ab"),
        ("abc", "abc", "abc", ["a leave"], "bc"),
        ("abc", "abc", "abc", ["b leave", "c leave"], "a"),
        ("abc", "abc", "abc", ["a leave", "b leave", "c leave"], "abc"),  # nobody would stay
        ("ab", "ab", "ab", ["a leave"], "b"),
        ("ab", "a", "a", ["a leave"], "ab"),  # b is not known to live
        ("ab", "a", "ab", ["a leave"], "b"),  # it voted on the parent
        ("abcd", "a", "ad", ["a leave"], "abcd"),  # d alone is no quorum of b, c, d
        ("abcd", "bc", "", ["a leave"], "bcd"),
        ("abcd", "bc", "", ["a leave", "d leave"], "bc"),
        ("abcde", "ab", "abc", ["d leave", "e leave"], "abc"),
        ("abcd", "abc", "abcd", ["c leave", "d leave"], "ab"),
        ("abcde", "a", "ae", ["d leave", "e leave"], "abcde"),  # a alone is never a quorum of what results
        ("abcd", "ab", "ab", ["c leave", "d leave"], "ab"),  # a and b: half with the most senior, then all
        ("abcd", "bd", "bd", ["c leave"], "abd"),
        ("abcd", "bd", "bd", ["a leave", "c leave"], "bd"),
        ("abcd", "cd", "cd", ["b leave"], "acd"),
        ("abc", "abc", "abc", ["d leave"], "abc"),  # a stranger has nothing to leave
        ("abc", "abc", "abc", ["b cannot"], "ac"),
        ("abc", "c", "c", ["b cannot"], "abc"),  # c alone is no quorum of a, c
        ("abc", "a", "a", ["b cannot"], "ac"),  # a, the senior of two, is
        ("abc", "abc", "abc", ["a cannot", "b cannot", "c cannot"], "abc"),
        ("ab", "ab", "ab", ["a cannot"], "b"),
        ("a", "a", "a", ["a leave"], "a"),
        ("a", "a", "a", ["a cannot"], "a"),
    ],
)
def test_leaving_applies_only_where_those_that_are_there_and_stay_are_a_quorum(
    voters, contributing, present, records, expected
):
    wishes = [record(*text.split()) for text in records]
    assert told(voters, (contributing, present, *wishes)) == [expected]


def test_leaving_applies_in_the_order_of_records_each_on_what_the_one_before_left():
    """Of two that go, the first may be all that the others can bear: d alone stays, and outweighs no b and c."""
    wishes = [record("a", "leave"), record("b", "leave")]
    # b, c, d without a: c and d are a quorum; then c, d
    assert told("abcd", ("cd", "cd", *wishes)) == ["cd"]
    # only c stays: no quorum of b, c, d, but of a, c, d neither
    assert told("abcd", ("c", "c", *wishes)) == ["abcd"]


def test_one_that_goes_on_contributing_without_a_vote_does_not_count_as_staying():
    wishes = [record("a", "cannot"), record("b", "cannot")]
    assert told("abc", ("ab", "ab", *wishes)) == ["abc"]


# Admission.


def test_a_newcomer_votes_after_admit_after_rounds_in_a_row():
    rounds = [("abc", "ab", record("c", "join"))] * 3
    assert told("ab", *rounds) == ["ab", "ab", "abc"]


def test_a_gap_in_the_rounds_starts_the_count_anew():
    join = record("c", "join")
    rounds = [("abc", "ab", join), ("abc", "ab", join), ("ab", "ab", join), ("abc", "ab", join), ("abc", "ab", join)]
    assert told("ab", *rounds)[-1] == "ab"
    assert told("ab", *rounds, ("abc", "ab", join))[-1] == "abc"


def test_an_empty_round_breaks_nobodys_row():
    join = record("c", "join")
    assert told("ab", ("abc", "ab", join), ("abc", "ab", join), ("", "ab"), ("abc", "ab", join))[-1] == "abc"


def test_no_one_is_admitted_without_a_record():
    assert told("ab", *[("abc", "ab")] * 6)[-1] == "ab"


def test_rounds_before_the_record_count():
    assert told("ab", *[("abc", "ab")] * 4, ("abc", "ab", record("c", "join")))[-1] == "abc"


def test_a_run_that_admits_by_ticket_only_never_admits_by_rounds():
    rounds = [("abc", "ab", record("c", "join"))] * 6
    assert told("ab", *rounds, policy=Policy(RUN, OWNER.peer_id, 0))[-1] == "ab"


def test_a_ticket_of_the_owner_admits_at_once():
    for policy in (POLICY, Policy(RUN, OWNER.peer_id, 0)):
        assert told("ab", ("ab", "ab", record("c", "join", ticket=ticket("c"))), policy=policy) == ["abc"]


@pytest.mark.parametrize(
    "bad", [ticket("d"), ticket("c", owner=KEYS["c"]), ticket("c", run=bytes(32)), bytes(64)],
    ids=["another peer's", "self-made", "another run's", "noise"],
)
def test_another_ticket_admits_nobody(bad):
    assert told("ab", ("abc", "ab", record("c", "join", ticket=bad))) == ["ab"]


@pytest.mark.parametrize(
    ("voters", "contributing", "joining", "expected"),
    [
        ("a", "abc", "b c", "abc"),
        ("a", "a", "b c", "ab"),  # a is half of two with the senior, and no quorum of three
        ("a", "ac", "b c", "abc"),
        ("ab", "a", "c", "ab"),
        ("ab", "ab", "c", "abc"),
        ("ab", "ab", "c d", "abcd"),
        ("ab", "ab", "c d e", "abcd"),
        ("ab", "bc", "c", "abc"),
        ("ab", "", "c", "ab"),  # votes on the parent are not enough for an admission
        ("abc", "bc", "d e", "abc"),  # half of four without the senior
        ("abc", "bcd", "d e", "abcde"),
    ],
)
def test_admission_applies_only_where_contributors_are_a_quorum_of_what_results(
    voters, contributing, joining, expected
):
    wishes = [record(letter, "join", ticket=ticket(letter)) for letter in joining.split()]
    assert told(voters, (contributing, voters, *wishes)) == [expected]


def test_the_electorate_never_exceeds_its_limit():
    voters, late = LETTERS[: MAX_ELECTORATE - 1], LETTERS[MAX_ELECTORATE - 1 : MAX_ELECTORATE + 2]
    wishes = [record(letter, "join", ticket=ticket(letter)) for letter in late]
    assert told(voters, (LETTERS, voters, *wishes)) == [voters + late[0]]
    leaving = [record(voters[0], "leave"), *wishes]
    assert told(voters, (LETTERS, voters, *leaving)) == [voters[1:] + late[:2]]


def test_newcomers_are_the_least_senior_in_the_order_of_records():
    wishes = [record(letter, "join", ticket=ticket(letter)) for letter in "ab"]
    assert told("dc", ("abcd", "cd", *wishes)) == ["dcab"]


# Journals.


def test_a_new_journal_is_named_in_its_place_of_seniority():
    before = Standings(electorate("abc"), tuple(v.peer for v in electorate("abc")))
    found = after(before, "abc", "abc", [record("a", "join", 2)]).electorate
    assert found == (Voter(KEYS["a"].peer_id, journal("a", 2)), *electorate("bc"))


def test_the_first_voters_are_entered_under_no_journal_and_named_by_their_records():
    before = Standings(electorates.genesis(tuple(KEYS[x].peer_id for x in "abc")))
    assert {entry.journal for entry in before.electorate} == {FIRST_JOURNAL}
    found = after(before, "abc", "", [record("a", "join"), record("c", "join")])
    assert [entry.journal for entry in found.electorate] == [journal("a"), FIRST_JOURNAL, journal("c")]


def test_a_leaver_is_not_named_under_a_new_journal():
    before = Standings(electorate("abc"), tuple(v.peer for v in electorate("abc")))
    found = after(before, "abc", "abc", [record("b", "leave", 2)])
    assert names(found) == "ac"
    kept = after(Standings(electorate("a")), "a", "", [record("a", "leave", 2)])
    assert kept.electorate == electorate("a")


# Survivors of a FORK.


def _promise(letter, rank=Rank.VOTERS, number=1):
    return LastPromise.sign(KEYS[letter], BASE, bytes(16), rank, journal(letter, number), None)


def test_surviving_voters_keep_their_seniority_under_the_journals_they_signed():
    before = Standings(electorate("dbac"), streaks={KEYS["b"].peer_id: 2})
    promises = (_promise("a"), _promise("d", number=2))
    found = electorates.survivors(before, promises, Rank.VOTERS)
    assert found.electorate == (Voter(KEYS["d"].peer_id, journal("d", 2)), *electorate("a"))
    assert found.decided_by == ()
    assert found.streaks == before.streaks


@pytest.mark.parametrize("rank", [Rank.CONTRIBUTORS, Rank.HOLDERS])
def test_other_survivors_vote_in_peer_order_up_to_the_limit(rank):
    promises = tuple(_promise(letter, rank) for letter in "fab")
    assert names(electorates.survivors(Standings(electorate("dbac")), promises, rank)) == "abf"
    many = tuple(_promise(letter, rank) for letter in LETTERS)
    assert names(electorates.survivors(Standings(electorate("z")), many, rank)) == LETTERS[:MAX_ELECTORATE]


# Any story.

letter_sets = st.sets(st.sampled_from("abcdefg"))
wishes = st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from(
    [("join", True), ("join", False), ("leave", False), ("cannot", False)]), max_size=4)
stories = st.lists(st.tuples(letter_sets, letter_sets, wishes), max_size=8)
SIGNED = {(letter, word, invited): record(letter, word, ticket=ticket(letter) if invited else b"")
          for letter in "abcdefg" for word in WORDS for invited in (True, False)}


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=5, unique=True), stories, st.integers(0, 3))
@settings(max_examples=120, deadline=None, derandomize=True, database=None)
def test_any_story_keeps_the_electorate_within_its_rules(voters, rounds, admit_after):
    policy = Policy(RUN, OWNER.peer_id, admit_after)
    standings = Standings(electorate(voters))
    for contributing, present, wished in rounds:
        records = [SIGNED[letter, word, invited] for letter, (word, invited) in wished.items()]
        before, standings = standings, after(standings, contributing, present, records, policy)
        again = after(before, contributing, present, records, policy)
        assert again == standings, "a pure function of the chain and the records"
        old, new = names(before), names(standings)
        assert 1 <= len(new) <= MAX_ELECTORATE
        assert len(set(new)) == len(new)
        stayed = [letter for letter in old if letter in new]
        assert new[: len(stayed)] == "".join(stayed), "seniority"
        came = set(new) - set(old)
        assert came <= {letter for letter, (word, _) in wished.items() if word == "join"}
        there = {KEYS[letter].peer_id for letter in contributing}
        assert not came or electorates.is_quorum(standings.electorate, there)
        going = {letter for letter, (word, _) in wished.items() if word != "join"}
        went = set(old) - set(new) - going
        for letter in went:  # evicted: idle in this round's parent and the one before
            peer = KEYS[letter].peer_id
            assert peer in before.decided_by
            assert peer in before.idle
            assert letter not in present | contributing


def test_a_record_is_bound_to_its_base():
    with pytest.raises(SignatureError):
        record("a", "leave").check(RUN)
    record("a", "leave").check(BASE)
