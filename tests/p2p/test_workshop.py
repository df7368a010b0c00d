"""The heavy arithmetic: exact, streaming, and unmoved by bytes that are wrong."""

import tracemalloc

import numpy as np
import pytest

from atoll.p2p.blobs import BlobStore
from atoll.p2p.round.effects import Source
from atoll.p2p.workshop import OuterState, Workshop, load_state
from atoll.protocol.certificate import FIRST_JOURNAL, Certificate, Contribution, PartResult, Value, Voter, bitmap
from atoll.protocol.digest import content_digest, state_digest
from atoll.protocol.errors import MismatchError, NonFiniteError
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.manifest import Draft, GenesisSettings, Manifest
from atoll.protocol.messages import BlobKind

ME = Identity(b"\1" * 32)
PARENT = bytes(32)


def workshop(folder, numel, momentum=0.0):
    exchange = {"contribution_codec": "fp32", "gather_codec": "fp32", "part_elements": 65_536}
    draft = Draft.from_tree(
        {
            "run": {"name": "t", "owner": peer_name(ME.peer_id)},
            "exchange": exchange,
            "outer": {"learning_rate": 0.7 if momentum else 1.0, "momentum": momentum},
        }
    )
    manifest = Manifest.sign(draft, GenesisSettings(numel, bytes(32)), ME)
    params = np.linspace(-1, 1, numel, dtype=np.float32)
    state = OuterState(PARENT, 0, 0, params, np.zeros(numel, np.float32) if momentum else None)
    return Workshop(manifest, BlobStore(folder / "blobs"), state), manifest


def play(shop, vector):
    """One round of a single contributor; returns its certificate (the votes are not the workshop's business)."""
    root, leaves = shop.encode(PARENT, vector)
    parts, chunks = [], []
    for part, leaf in enumerate(leaves):
        result, bad = shop.reduce(PARENT, part, (Source(ME.peer_id, root, 3, leaf),))
        assert result is not None
        assert bad == []
        parts.append(PartResult(bitmap({0}, 1), result))
        chunks.append(shop.step(PARENT, part, result))
    ordered = [chunk[section] for section in range(len(chunks[0])) for chunk in chunks]
    value = Value(
        PARENT,
        1,
        30,
        (Contribution(ME.peer_id, root, 30),),
        tuple(parts),
        (Voter(ME.peer_id, FIRST_JOURNAL),),
        state_digest(1, 30, ordered),
    )
    certificate = Certificate(value, 0, ())
    shop.commit(certificate)
    return certificate


def test_plain_averaging_of_one_peer_is_its_own_inner_step(tmp_path):
    shop, _ = workshop(tmp_path, 200_000)
    before, vector = shop.state.params.copy(), np.full(200_000, 0.25, np.float32)
    certificate = play(shop, vector)
    assert np.array_equal(shop.state.params, before - vector)
    assert shop.state.digest(shop.layout) == certificate.value.state
    assert (shop.state.round, shop.state.tokens, shop.state.parent) == (1, 30, certificate.id)


def test_memory_beyond_the_vectors_does_not_grow_with_them(tmp_path):
    peaks = []
    for numel in (1 << 20, 1 << 23):
        (tmp_path / str(numel)).mkdir()
        shop, _ = workshop(tmp_path / str(numel), numel, momentum=0.9)
        vector = np.ones(numel, np.float32)
        tracemalloc.start()
        play(shop, vector)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 16 << 20, peaks
    assert peaks[1] - peaks[0] < 4 << 20, peaks


def test_an_unusable_contribution_is_named_and_the_others_are_averaged(tmp_path):
    shop, _ = workshop(tmp_path, 1000)
    _, leaves = shop.encode(PARENT, np.ones(1000, np.float32))
    bad = np.full(1000, np.nan, np.float32).tobytes()
    shop.blobs.put(BlobKind.PART, PARENT, content_digest(bad), bad)
    good = Source(ME.peer_id, bytes(32), 1, leaves[0])
    worse = [Source(b"a", bytes(32), 1, content_digest(bad)), Source(b"b", bytes(32), 1, bytes([9]) * 32)]
    result, unusable = shop.reduce(PARENT, 0, (good, *worse))
    assert result is None
    assert unusable == worse
    assert shop.reduce(PARENT, 0, (good,))[0] is not None


def test_a_non_finite_vector_leaves_nothing_behind_to_be_sent(tmp_path):
    shop, _ = workshop(tmp_path, 1000)
    with pytest.raises(NonFiniteError):
        shop.encode(PARENT, np.full(1000, np.inf, np.float32))


def test_a_result_that_is_not_the_certified_state_is_noticed(tmp_path):
    shop, _ = workshop(tmp_path, 1000)
    certificate = play(shop, np.ones(1000, np.float32))
    other, _ = workshop(tmp_path / "other", 1000)
    other.blobs = shop.blobs
    other.state.params += np.float32(1)
    with pytest.raises(MismatchError):
        other.commit(certificate)


def test_a_damaged_state_file_is_refused(tmp_path):
    shop, manifest = workshop(tmp_path, 1000)
    certificate = play(shop, np.ones(1000, np.float32))
    path, value = tmp_path / "state", certificate.value
    whole = shop.state.params.tobytes()
    for data, good in ((whole, True), (whole[:-4], False), (whole[:100] + b"\1" + whole[101:], False)):
        path.write_bytes(data)
        if good:
            assert load_state(path, manifest, value.id, 1, 30, value.state).round == 1
        else:
            with pytest.raises(MismatchError):
                load_state(path, manifest, value.id, 1, 30, value.state)
