"""State and log after a restart or a switch of lineage: the certified one, or the longest prefix that can be had."""

import numpy as np
import pytest

from atoll.p2p.journal import Journal
from atoll.p2p.rebuild import rebuild
from atoll.protocol.errors import MismatchError, MissingBytesError


@pytest.fixture
def three_rounds(run, gradient):
    """A run with one round saved, one that is not, a FORK, and one more round."""
    peer = run()
    peer.commit(peer.certify(gradient(1), gradient(2)), save=True)
    peer.commit(peer.certify(gradient(3)))
    peer.fork()
    peer.commit(peer.certify(gradient(4), gradient(5)))
    return peer


def path_of(peer, digest):
    return next(place.path for place in peer.blobs._places[digest])


def test_a_restart_comes_back_to_the_same_state_and_tip(three_rounds):
    digest, tip = three_rounds.digest, three_rounds.chain.tip.id
    resumed = three_rounds.start()
    assert (three_rounds.digest, resumed.chain.tip.id, resumed.digest) == (digest, tip, digest)
    assert len(resumed.history) == 4


def test_with_every_saved_state_damaged_the_log_leads_there_from_genesis(three_rounds):
    digest = three_rounds.digest
    for path in three_rounds.store.saved_states().values():
        path.write_bytes(b"\1" + path.read_bytes()[1:])
    three_rounds.start()
    assert three_rounds.digest == digest
    assert three_rounds.store.saved_states() == {}


@pytest.mark.parametrize("damage", ["gone", "flipped"])
def test_the_first_certificate_whose_bytes_are_gone_is_named_and_the_log_ends_before_it(three_rounds, damage):
    peer = three_rounds
    second = peer.lineage()[1]
    path = path_of(peer, second.value.parts[3].digest)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with pytest.raises(MissingBytesError, match="round 2") as caught:
        rebuild(peer.store, peer.blobs, peer.manifest, peer.lineage())
    assert caught.value.certificate == second.id
    lineage = peer.lineage()
    resumed = peer.start()
    assert [entry.link.id for entry in resumed.history] == [lineage[0].id]
    assert resumed.digest == peer.digest == lineage[0].value.state
    assert len(peer.start().history) == 1


def test_a_fork_at_the_end_of_the_log_stays(run, gradient):
    peer = run()
    peer.commit(peer.certify(gradient(1)))
    fork, digest = peer.fork(), peer.digest
    resumed = peer.start()
    assert (resumed.chain.tip.id, peer.digest) == (fork.id, digest)
    assert (resumed.chain.tip.base, resumed.workshop.state.parent) == (fork.parent, fork.parent)


def test_a_fork_before_the_cut_stays_too(three_rounds):
    peer = three_rounds
    path_of(peer, peer.lineage()[2].value.parts[0].digest).unlink()
    resumed = peer.start()
    assert resumed.chain.tip.is_fork
    assert len(resumed.history) == 3


def test_a_result_that_leads_to_another_state_than_the_certified_one_is_not_taken(three_rounds, with_value):
    peer = three_rounds
    wrong = with_value(peer.lineage()[2], state=bytes(32))
    with pytest.raises(MismatchError, match="not the certified one"):
        rebuild(peer.store, peer.blobs, peer.manifest, [*peer.lineage()[:2], wrong])


def test_another_lineage_is_adopted_in_place_and_a_failure_leaves_everything_as_it_was(run, gradient):
    ours, theirs = run("ours"), run("theirs")
    first = ours.commit(ours.certify(gradient(1)), save=True)
    theirs.copy_results(ours)
    theirs.commit(first)
    ours.commit(ours.certify(gradient(2)), save=True)
    theirs.fork()
    theirs.commit(theirs.certify(gradient(3)))
    theirs.commit(theirs.certify())
    params, before = ours.workshop.state.params, ours.digest
    with pytest.raises(MissingBytesError):
        ours.workshop.adopt(theirs.lineage())
    assert (ours.digest, ours.workshop.state.round) == (before, 2)
    ours.copy_results(theirs)
    ours.workshop.adopt(theirs.lineage())
    assert ours.digest == theirs.digest
    assert np.array_equal(params, theirs.workshop.state.params)  # the vector that others hold on to
    assert (ours.workshop.state.parent, ours.workshop.state.round) == (theirs.chain.tip.id, 3)
    ours.workshop.adopt(ours.lineage())
    assert ours.digest == before


def test_a_damaged_genesis_is_said_so(run, gradient):
    peer = run()
    peer.commit(peer.certify(gradient(1)))
    peer.store.genesis.write_bytes(b"\1" + peer.store.genesis.read_bytes()[1:])
    with pytest.raises(MismatchError, match="damaged: remove it"):
        peer.start()


def test_a_journal_that_remembers_only_what_the_log_has_lost_begins_anew(three_rounds):
    peer = three_rounds
    journal = Journal.open(peer.store.journal)
    old = journal.id
    journal.prune([peer.chain.tip.id], peer.chain.tip.id)
    journal._compact()
    journal.close()
    peer.start()
    assert Journal.open(peer.store.journal).id == old
    path_of(peer, peer.lineage()[1].value.parts[0].digest).unlink()
    peer.start()
    assert Journal.open(peer.store.journal).id != old
