"""Sequences and their order: every token once an epoch, exact positions, the same data for any number of ranks."""

import numpy as np
import pytest

from atoll.trainer.data.loader import IGNORED, Loader, Windows
from atoll.trainer.data.order import permuted

PEER, OTHER = b"peer", b"other"


def windows(tokens: int = 103, length: int = 10) -> Windows:
    return Windows(np.arange(tokens, dtype=np.uint16), length)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 65, 1000])
def test_an_epochs_order_is_a_permutation(count):
    order = permuted(np.arange(count), count, 1, PEER, 0)
    assert sorted(order.tolist()) == list(range(count))


def test_peers_epochs_and_seeds_have_orders_of_their_own():
    positions = np.arange(500)
    orders = [
        permuted(positions, 500, *who).tolist() for who in ((1, PEER, 0), (1, OTHER, 0), (1, PEER, 1), (2, PEER, 0))
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_is_the_same_on_every_machine():
    assert permuted(np.arange(12), 12, 7, PEER, 3).tolist() == [11, 3, 2, 1, 0, 9, 6, 10, 8, 5, 7, 4]


def test_every_target_is_met_once_an_epoch():
    loader = Loader(windows(), 1, PEER)
    seen = [loader.next(1, 0, 1).targets for _ in range(windows().count)]
    targets = np.concatenate([rows[rows != IGNORED] for rows in seen])
    assert sorted(targets.tolist()) == list(range(1, 103))
    assert loader.epoch == 1


def test_the_last_sequence_is_padded_with_targets_that_do_not_count():
    batch = windows().rows(np.array([10]), 0, 1)
    assert batch.targets[0, :2].tolist() == [101, 102]
    assert (batch.targets[0, 2:] == IGNORED).all()
    assert batch.tokens == 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_one_batch_in_equal_shapes(ranks):
    whole = Loader(windows(), 1, PEER).next(5, 0, 1)
    parts = [Loader(windows(), 1, PEER).next(5, rank, ranks) for rank in range(ranks)]
    assert len({part.inputs.shape for part in parts}) == 1
    assert {part.tokens for part in parts} == {whole.tokens}
    joined = np.concatenate([part.targets for part in parts])
    assert np.array_equal(joined[: len(whole.targets)], whole.targets)
    assert (joined[len(whole.targets) :] == IGNORED).all()


def test_a_position_goes_on_exactly_where_it_was_saved():
    whole = Loader(windows(), 1, PEER)
    batches = [whole.next(4, 0, 1).inputs for _ in range(9)]
    resumed = Loader(windows(), 1, PEER, position=4 * 4)
    assert all(np.array_equal(resumed.next(4, 0, 1).inputs, batch) for batch in batches[4:])


def test_a_batch_larger_than_the_corpus_runs_through_several_epochs():
    loader = Loader(windows(5, 10), 1, PEER)
    batch = loader.next(8, 0, 1)
    assert batch.tokens == 8 * 4
    assert loader.epoch == 8


def test_what_is_evaluated_is_spread_over_all_of_it():
    assert windows(1001, 10).spread(40).tolist() == [0, 25, 50, 75]
    assert windows(15, 10).spread(1000).tolist() == [0, 1]
