"""The demo's draft is a valid one, says what was promised, and survives being written as TOML."""

import tomlkit

from atoll.node.demo.plan import DemoPlan
from atoll.node.demo.recipe import demo_draft
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.manifest import Draft

NAMES = [peer_name(Identity(bytes([number]) * 32).peer_id) for number in range(40)]


def draft_of(plan):
    first = f"/ip4/127.0.0.1/tcp/1/p2p/{NAMES[0]}"
    return Draft.from_toml(tomlkit.dumps(demo_draft(plan, NAMES[:plan.peers], [first])))


def test_the_default_is_what_was_promised():
    draft = draft_of(DemoPlan())
    assert draft.run.rounds == 8
    assert list(draft.run.electorate) == NAMES[:4]
    assert draft.run.owner == NAMES[0]
    assert draft.inner.steps == 20
    assert draft.inner.batch_sequences * draft.data.sequence_length == 2048
    assert (draft.outer.learning_rate, draft.outer.momentum) == (1.0, 0.0)
    assert (draft.exchange.contribution_codec, draft.exchange.gather_codec) == ("int8", "int8")
    assert draft.exchange.grace_s == 60.0
    assert draft.data.source == "stdlib"


def test_more_peers_than_an_electorate_holds_are_contributors():
    assert len(draft_of(DemoPlan(peers=40)).run.electorate) == 31


def test_a_short_run_is_not_all_warm_up_and_an_endless_one_has_a_constant_rate():
    assert draft_of(DemoPlan(rounds=2, inner_steps=3)).inner.warmup_steps == 0
    assert draft_of(DemoPlan(rounds=0)).inner.schedule == "constant"
