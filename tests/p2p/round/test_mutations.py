"""The mutation proof: each rule that random runs hardly see is broken on purpose, and a named test must fail for it.

A mutation replaces one function of the protocol; then the body of the test that guards the rule is run as it stands.
Without the mutation the same test passes where it lives. Quorums, locks and ballots are broken in the exhaustive
search's tests.
"""

import dataclasses

import numpy as np
import pytest

from atoll.p2p import outer_state, rebuild
from atoll.p2p.round import chain, core, electorate, follow, lastballot, lead, lineage, round, synod  # noqa: A004
from atoll.p2p.round.exchange import Result
from atoll.p2p.workshop import Workshop
from atoll.protocol.certificate import Certificate, Voter
from atoll.protocol.digest import array_digest, tree_digest
from atoll.protocol.errors import MismatchError
from atoll.protocol.outer_step import PartReducer
from atoll.protocol.standing import Standing

FAILS = (AssertionError, pytest.fail.Exception, MismatchError)  # the last: a state that is not the certified one


# Who votes next (rule 2).


def keeps_the_idle(patch):
    patch.setattr(electorate, "_without_idle", lambda voters, idle: voters)


def lets_everybody_go(*kinds):
    """LEAVE or CANNOT_VOTE applies whoever is there, as long as one is left."""

    def plant(patch):
        real = electorate._without_leavers

        def without_limit(voters, records, active):
            records = list(records)
            going = {record.peer for record in records if record.kind in kinds}
            left = tuple(entry for entry in voters if entry.peer not in going) or voters
            return real(left, [record for record in records if record.kind not in kinds], active)

        patch.setattr(electorate, "_without_leavers", without_limit)

    return plant


def admits(*, earned=False, quorum=False, limit=False):
    """Admission without one of its conditions."""

    def plant(patch):
        def newcomers(voters, records, contributing, streaks, policy):
            for record in records:
                full = len(voters) >= electorate.MAX_ELECTORATE and not limit
                if record.kind is not Standing.JOIN or record.peer in electorate.peers(voters) or full:
                    continue
                grown = (*voters, Voter(record.peer, record.journal))
                worthy = 0 < policy.admit_after <= streaks.get(record.peer, 0) or electorate._invited(record, policy)
                if (worthy or earned) and (quorum or electorate.is_quorum(grown, contributing)):
                    voters = grown
            return voters

        patch.setattr(electorate, "_with_newcomers", newcomers)

    return plant


def believes_proposed_electorates(patch):
    patch.setattr(chain, "check_electorate", lambda value, parent, policy: None)


VOTERS = "test_electorate"
RULES = [
    (keeps_the_idle, VOTERS, "test_two_idle_rounds_evict", ()),
    (keeps_the_idle, VOTERS, "test_all_of_an_idle_electorate_but_the_most_senior_is_evicted", ()),
    (lets_everybody_go(Standing.CANNOT_VOTE), VOTERS,
     "test_leaving_applies_only_where_those_that_are_there_and_stay_are_a_quorum",
     ("abc", "c", "c", ["b cannot"], "abc")),
    (lets_everybody_go(Standing.CANNOT_VOTE), VOTERS,
     "test_one_that_goes_on_contributing_without_a_vote_does_not_count_as_staying", ()),
    (lets_everybody_go(Standing.LEAVE), VOTERS,
     "test_leaving_applies_only_where_those_that_are_there_and_stay_are_a_quorum", ("ab", "a", "a", ["a leave"], "ab")),
    (lets_everybody_go(Standing.LEAVE), VOTERS,
     "test_leaving_applies_in_the_order_of_records_each_on_what_the_one_before_left", ()),
    (admits(quorum=True), VOTERS, "test_admission_applies_only_where_contributors_are_a_quorum_of_what_results",
     ("ab", "a", "c", "ab")),
    (admits(earned=True), VOTERS, "test_a_newcomer_votes_after_admit_after_rounds_in_a_row", ()),
    (admits(limit=True), VOTERS, "test_the_electorate_never_exceeds_its_limit", ()),
]


@pytest.mark.parametrize(("mutation", "module", "name", "arguments"), RULES, ids=[
    "eviction off", "eviction off, again", "CANNOT_VOTE limit off", "CANNOT_VOTE limit off, again", "LEAVE limit off",
    "LEAVE limit off, again", "admission by a minority", "admission unearned", "admission without end",
])
def test_a_broken_electorate_rule_is_caught(body, monkeypatch, mutation, module, name, arguments):
    test = body(module, name)
    test(*arguments)
    mutation(monkeypatch)
    with pytest.raises(FAILS):
        test(*arguments)


def test_an_electorate_proposed_and_not_recomputed_is_caught(body, monkeypatch):
    name = "test_a_wish_that_the_rules_do_not_grant_is_no_reason_to_name_another_electorate"
    test, book = body("test_chain", name), body("test_chain", "Book")

    def fresh():
        made = book()
        made.certify()
        return made

    test(fresh())
    believes_proposed_electorates(monkeypatch)
    with pytest.raises(FAILS):
        test(fresh())


# Certificates and their ids (rules 1 and 5).


def test_a_certificate_id_over_signatures_is_caught(body, monkeypatch):
    test = body("test_rules", "test_certificate_id_is_the_same_under_any_subset_of_votes_and_any_ballot")
    test()
    monkeypatch.setattr(Certificate, "id", property(
        lambda self: tree_digest("certificate", [self.value.id, *(vote.signature for vote in self.votes)])))
    with pytest.raises(FAILS):
        test()


# Scenarios: the planted fault, and the scenario that must fail for it.


def regroups_under_the_same_parent(patch):
    """Whoever is left votes under the parent itself: one decree, two electorates."""
    real = lastballot._close

    def close(acting, now):
        last, tip = acting.decree.last, acting.tip
        promises = tuple(last.promises[peer][0] for peer in sorted(last.promises))
        survivors = electorate.survivors(tip.standings, promises, last.rank)
        if len(promises) == len(tip.voters):
            real(acting, now)
            return
        left = dataclasses.replace(tip, standings=dataclasses.replace(tip.standings, electorate=survivors.electorate))
        acting.decree.last = None
        acting.chain._tips[tip.id] = acting.chain.tip = left
        acting.memory[tip.id] = synod.Acceptor()
        acting.decree = acting.new_decree(now)

    patch.setattr(lastballot, "_close", close)


def follows_empty_forks(patch):
    """A FORK is entered by whoever hears of it."""

    def choose(acting, now):
        parent = lastballot._parent(acting) or acting.tip
        known = acting.forks.get(parent.id, [])
        if known and acting.adopting is None and not acting.decree.committing:
            best = min(known, key=lambda fork: (-len(fork.promises), fork.id))
            if best.id != acting.tip.id:
                follow.enter(acting, best, now)

    patch.setattr(lastballot, "choose", choose)


def chooses_by_tokens(patch):
    tokens = {}
    add = chain.Chain.add

    def noted(self, link):
        if isinstance(link, Certificate):
            tokens[link.id] = link.value.tokens
        return add(self, link)

    def key(self):
        return -tokens.get(self.tip.node.id, 0), 0, 0, self.child.node.id

    patch.setattr(chain.Chain, "add", noted)
    patch.setattr(lineage._Lane, "key", key)


def forgets_accepted_values(patch):
    patch.setattr(lastballot, "evidence", lambda promises, voters: None)
    patch.setattr(chain, "evidence", lambda promises, voters: None)


def follows_before_bytes_are_held(patch):
    patch.setattr(follow, "_complete", lambda acting, certificate: True)


def votes_before_its_bytes_are_durable(patch):
    real = core.Core.remember
    patch.setattr(core.Core, "remember", lambda self, acceptor, results=(): real(self, acceptor))


def remembers_by_round_number(patch):
    real = core.Core.remember

    def key(self):
        return self.tip.round.to_bytes(32, "big")

    def remember(self, acceptor, results=()):
        real(self, acceptor, results)
        self.memory[key(self)] = acceptor

    patch.setattr(core.Core, "remember", remember)
    patch.setattr(core.Core, "memory_of", lambda self, parent: self.memory.get(key(self), synod.Acceptor()))


def divides_by_the_expected_members(patch):
    """The sum of those that are there, over the weight of all that START named (here: three of equal weight)."""
    real = PartReducer.average

    def average(self):
        missing = 3 - self.members if hasattr(self, "members") else 0
        whole = real(self)
        return whole if missing <= 0 else (whole * np.float32(self.members / 3)).astype(np.float32)

    add = PartReducer.add

    def counted(self, weight, values):
        self.members = getattr(self, "members", 0) + 1
        add(self, weight, values)

    patch.setattr(PartReducer, "add", counted)
    patch.setattr(PartReducer, "average", average)


def takes_a_dead_owners_part_from_the_local_vector(patch):
    """Each part whose owner went away is the leader's own, and said to be everybody's."""

    def reassign(acting, now):
        exchange, proposer = acting.decree.exchange, acting.decree.proposer
        head = exchange.heads.get(acting.me)
        if proposer is None or exchange.start is None or proposer.value is not None or head is None:
            return
        roots = tuple(h.root for p, h in sorted(exchange.heads.items()) if p in exchange.start.members)
        for part, owner in enumerate(exchange.owners):
            gone = owner != acting.me and not acting.pace.present(owner, now)
            if gone and (part, owner) not in exchange.results:
                own = exchange.leaves[head.root][part]
                exchange.results[part, owner] = Result(own, roots)
                acting.results_held[own] = acting.tip.base
                acting.step(part, own)

    patch.setattr(lead, "reassign", reassign)


def applies_its_unencoded_result(patch):
    """Where this peer reduced a part itself, the step is taken with the average before it was encoded."""
    averages = {}
    average = PartReducer.average
    reduce = Workshop.reduce
    step = Workshop.step
    made = []

    def noted(self):
        made.append(average(self))
        return made[-1]

    def reduced(self, base, part, sources):
        made.clear()
        digest, bad = reduce(self, base, part, sources)
        if digest is not None and made:
            averages[id(self), digest] = made[-1]
        return digest, bad

    def stepped(self, base, part, result):
        chunks = step(self, base, part, result)
        own = averages.get((id(self), result))
        if own is None or chunks is None:
            return chunks
        bounds, outer = self.layout.bounds(part), self._manifest.draft.outer
        after = outer_state.step_part(
            self.state.params[bounds], self.state.momentum[bounds], own, learning_rate=outer.learning_rate,
            momentum_factor=outer.momentum,
        )
        return tuple(array_digest(vector) for vector in after)

    patch.setattr(PartReducer, "average", noted)
    patch.setattr(Workshop, "reduce", reduced)
    patch.setattr(Workshop, "step", stepped)


def joins_without_outer_momentum(patch):
    real = rebuild.load_state

    def load(*args):
        state = real(*args)
        state.momentum[:] = 0
        return state

    patch.setattr(rebuild, "load_state", load)


def switches_without_outer_momentum(patch):
    def become(self, other):
        np.copyto(self.params, other.params)
        self.parent, self.round, self.tokens = other.parent, other.round, other.tokens

    patch.setattr(outer_state.OuterState, "become", become)


def settles_by_timeout(patch):
    """After the grace a peer applies what it has, its own contribution if nobody else's, with no certificate."""
    patch.setattr(chain, "check_votes", lambda certificate, parent: None)
    tick = round.Round.tick

    def ticked(self, now):
        effects, decree = tick(self, now), self.decree
        over = decree.exchange.start is not None and now >= decree.exchange.grace_ends
        if not over or decree.certificate is not None or self.adopting is not None:
            return effects
        value = decree.own_value(self.chain.policy, self.attendees(), self.all_records(), may_be_empty=False)
        if value is not None:
            self.chain.add(Certificate(value, 0, ()))
            follow.gather(self)
            follow.follow(self, now)
        return [*effects, *self.drain()]

    patch.setattr(round.Round, "tick", ticked)


def one_owner_dies(swarm):
    """An owner dies while it reduces: others do its parts, and every result is the mean of what is listed."""
    group = swarm(3)
    group.reach(1)
    victims = []

    def kill(peer, effect):
        if not victims and type(effect).__name__ == "Reduce" and peer.round.leader != peer.id:
            victims.append(peer)
            group.kill(peer)

    group.on_effect = kill
    assert group.run(100, lambda: bool(victims))
    group.reach(3)
    group.check_exactness()


def one_member_dies(swarm):
    """A member dies before it has sent anything, after START named it."""
    group = swarm(3, gone_after_s=4.0)
    group.reach(1)
    victims = []

    def kill(peer, effect):
        if not victims and type(effect).__name__ == "SendBlob" and peer.round.leader != peer.id:
            victims.append(peer)
            group.kill(peer)

    group.on_effect = kill
    assert group.run(100, lambda: bool(victims))
    group.reach(3)
    assert len(group.live()[0].history[1].certificate.value.parts) > 1
    group.check_exactness()


FORKS, ROUNDS = "test_forks", "test_round"
SCENARIOS = [
    (regroups_under_the_same_parent, FORKS,
     "test_two_halves_that_meet_again_follow_the_quorum_and_nobody_restarts", ("in the smaller half",)),
    (follows_empty_forks, FORKS, "test_an_empty_fork_under_the_tip_itself_moves_nobody_who_did_not_sign_it", ()),
    (chooses_by_tokens, FORKS, "test_a_lone_peer_that_was_cut_off_comes_back_to_the_quorum_s_lineage", ()),
    (forgets_accepted_values, FORKS, "test_a_value_accepted_by_a_survivor_is_certified_behind_the_fork", ()),
    (follows_before_bytes_are_held, FORKS,
     "test_a_heavier_lineage_whose_bytes_nobody_holds_is_not_followed_and_holds_nobody_up", ()),
    (votes_before_its_bytes_are_durable, ROUNDS, "test_all_peers_certify_the_same_rounds", (2,)),
    (remembers_by_round_number, FORKS,
     "test_half_of_the_group_gone_for_good_goes_on_in_one_new_lineage_that_says_so", ()),
    (divides_by_the_expected_members, None, one_member_dies, ()),
    (takes_a_dead_owners_part_from_the_local_vector, None, one_owner_dies, ()),
    (applies_its_unencoded_result, ROUNDS, "test_all_peers_certify_the_same_rounds", (2,)),
    (joins_without_outer_momentum, ROUNDS, "test_a_restarted_peer_catches_up_from_results_and_contributes_again", ()),
    (switches_without_outer_momentum, FORKS,
     "test_two_halves_that_meet_again_follow_the_quorum_and_nobody_restarts", ("in the larger half",)),
    (settles_by_timeout, FORKS, "test_all_gone_but_one_and_the_one_goes_on", ()),
]


@pytest.mark.parametrize(("mutation", "module", "name", "arguments"), SCENARIOS, ids=[s[0].__name__ for s in SCENARIOS])
def test_a_broken_rule_is_caught_by_its_scenario(body, swarm, monkeypatch, mutation, module, name, arguments):
    scenario = name if module is None else body(module, name)
    mutation(monkeypatch)
    with pytest.raises(FAILS):
        scenario(swarm, *arguments)


@pytest.mark.parametrize("scenario", [one_owner_dies, one_member_dies])
def test_without_a_mutation_the_scenarios_that_live_here_pass(swarm, scenario):
    scenario(swarm)
