"""The heavy arithmetic: exact, streaming, unmoved by bytes that are wrong, and its ledger unmoved by a kill."""

import tracemalloc

import numpy as np
import pytest

from atoll.p2p import outer_state
from atoll.p2p.blobs import BlobStore
from atoll.p2p.outer_state import load_state
from atoll.p2p.residuals import FileResiduals, MemoryResiduals
from atoll.p2p.round.effects import Source
from atoll.p2p.round.ledger import UNIT
from atoll.p2p.workshop import OuterState, Workshop
from atoll.protocol.certificate import Certificate, Contribution, PartResult, Value, bitmap
from atoll.protocol.digest import ZERO_DIGEST, content_digest, state_digest
from atoll.protocol.errors import MismatchError, MissingBytesError, NonFiniteError
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.layout import Layout
from atoll.protocol.manifest import Draft, GenesisSettings, Manifest
from atoll.protocol.messages import BlobKind

ME = Identity(b"\1" * 32)
BASE = bytes(32)


def workshop(folder, numel, momentum=0.0, codec="fp32", **more):
    exchange = {"contribution_codec": codec, "gather_codec": "fp32", "part_elements": 65_536}
    draft = Draft.from_tree(
        {
            "run": {"name": "t", "owner": peer_name(ME.peer_id)},
            "exchange": exchange,
            "outer": {"learning_rate": 0.7 if momentum else 1.0, "momentum": momentum},
        }
    )
    manifest = Manifest.sign(draft, GenesisSettings(numel, bytes(32)), ME)
    params = np.linspace(-1, 1, numel, dtype=np.float32)
    state = OuterState(BASE, 0, 0, params, np.zeros(numel, np.float32) if momentum else None)
    return Workshop(manifest, BlobStore(folder / "blobs"), state, **more), manifest


def play(shop, vector):
    """One round of a single contributor; returns its certificate (the votes are not the workshop's business)."""
    root, leaves = shop.encode(BASE, vector, 3)
    parts, chunks = [], []
    for part, leaf in enumerate(leaves):
        result, bad = shop.reduce(BASE, part, (Source(ME.peer_id, root, 3, leaf),))
        assert result is not None
        assert bad == []
        parts.append(PartResult(bitmap({0}, 1), result))
        chunks.append(shop.step(BASE, part, result))
    ordered = [chunk[section] for section in range(len(chunks[0])) for chunk in chunks]
    listed = (Contribution(ME.peer_id, root, 30),)
    state = state_digest(1, 30, ordered)
    certificate = Certificate(Value(BASE, 1, 30, listed, tuple(parts), b"", (), (), state), 0, ())
    shop.commit(certificate)
    return certificate


def test_plain_averaging_of_one_peer_is_its_own_inner_step(tmp_path):
    shop, _ = workshop(tmp_path, 200_000)
    before, vector = shop.state.params.copy(), np.full(200_000, 0.25, np.float32)
    certificate = play(shop, vector)
    assert np.array_equal(shop.state.params, before - vector)
    assert shop.state.digest(shop.layout) == certificate.value.state
    assert (shop.state.round, shop.state.tokens, shop.state.parent) == (1, 30, certificate.id)


@pytest.mark.parametrize("codec", ["fp32", "top8"])
def test_memory_beyond_the_vectors_does_not_grow_with_them(tmp_path, codec):
    peaks = []
    for numel in (1 << 19, 1 << 22) if codec == "top8" else (1 << 20, 1 << 23):
        folder = tmp_path / str(numel)
        folder.mkdir()
        residuals = FileResiduals(folder / "residuals", Layout(numel, 65_536))
        shop, _ = workshop(folder, numel, momentum=0.9, codec=codec, own=ME.peer_id, residuals=residuals)
        vector = np.ones(numel, np.float32)
        tracemalloc.start()
        play(shop, vector)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 16 << 20, peaks
    assert peaks[1] - peaks[0] < 4 << 20, peaks


def test_without_error_feedback_there_is_no_ledger_and_with_it_the_peer_must_be_known(tmp_path):
    assert workshop(tmp_path, 1000)[0].ledger is None
    with pytest.raises(ValueError, match="needs its peer's id"):
        workshop(tmp_path, 1000, codec="top8")


def test_an_unusable_contribution_is_named_and_the_others_are_averaged(tmp_path):
    shop, _ = workshop(tmp_path, 1000)
    _, leaves = shop.encode(BASE, np.ones(1000, np.float32))
    bad = np.full(1000, np.nan, np.float32).tobytes()
    shop.blobs.put(BlobKind.PART, BASE, content_digest(bad), bad)
    good = Source(ME.peer_id, bytes(32), 1, leaves[0])
    worse = [Source(b"a", bytes(32), 1, content_digest(bad)), Source(b"b", bytes(32), 1, bytes([9]) * 32)]
    result, unusable = shop.reduce(BASE, 0, (good, *worse))
    assert result is None
    assert unusable == worse
    assert shop.reduce(BASE, 0, (good,))[0] is not None


@pytest.mark.parametrize("codec", ["fp32", "top8"])
def test_a_non_finite_vector_leaves_nothing_behind_to_be_sent(tmp_path, codec):
    shop, _ = workshop(tmp_path, 1000, codec=codec, own=ME.peer_id)
    with pytest.raises(NonFiniteError):
        shop.encode(BASE, np.full(1000, np.inf, np.float32))
    if shop.ledger is not None:
        assert shop.ledger.entries == {}
        shop.ledger.check()


def test_a_result_that_is_not_the_certified_state_is_noticed(tmp_path):
    shop, _ = workshop(tmp_path, 1000)
    certificate = play(shop, np.ones(1000, np.float32))
    other, _ = workshop(tmp_path / "other", 1000)
    other.blobs = shop.blobs
    other._stepper._blobs = shop.blobs
    other.state.params += np.float32(1)
    with pytest.raises(MismatchError):
        other.commit(certificate)


def test_a_commit_whose_bytes_are_gone_changes_nothing(run, gradient):
    peer = run()
    certificate = peer.certify(gradient(1))
    before = peer.digest
    peer.blobs.discard_results(peer.chain.tip.base)
    with pytest.raises(MissingBytesError, match="round 1"):
        peer.workshop.commit(certificate)
    assert peer.digest == before


def test_an_empty_round_moves_the_counters_alone_and_hashes_nothing_twice(run, gradient, monkeypatch):
    peer = run()
    peer.commit(peer.certify(gradient(1)))
    params, first = peer.workshop.state.params.copy(), peer.digest
    monkeypatch.setattr(outer_state, "array_digest", lambda values: pytest.fail("a chunk was hashed again"))
    certificate = peer.certify()
    peer.workshop.commit(certificate)
    monkeypatch.undo()
    assert np.array_equal(peer.workshop.state.params, params)
    assert (peer.workshop.state.round, peer.workshop.state.parent) == (2, certificate.id)
    assert peer.digest == certificate.value.state != first
    assert peer.workshop.step(BASE, 0, ZERO_DIGEST) is None  # another base


def test_digests_of_unchanged_chunks_are_those_of_the_state_that_is_there(run, gradient):
    peer, other = run("a"), run("b")
    other.commit(other.certify(gradient(1)))
    before = peer.workshop.step(peer.chain.tip.base, 2, ZERO_DIGEST)
    peer.workshop.state = other.workshop.state
    after = peer.workshop.step(other.chain.tip.base, 2, ZERO_DIGEST)
    assert after == other.workshop.step(other.chain.tip.base, 2, ZERO_DIGEST) != before


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


# With error feedback.

FEEDBACK = {"contribution_codec": "top8", "momentum": 0.0, "residual_cap": 4.0}


def test_with_feedback_the_state_keeps_up_with_the_gradients_that_were_made(run, gradient):
    """Alone with plain averaging: the state moved by what was made, less what the ledger still holds."""
    peer = run(**FEEDBACK)
    before, made = peer.workshop.state.params.astype(np.float64), np.zeros(5000)
    for round_number in range(12):
        vector = gradient(1) + np.float32(0.1) * gradient(2 + round_number)
        peer.commit(peer.certify(vector))
        made += vector
        peer.workshop.ledger.check()
    shop, left = peer.workshop, np.zeros(5000)
    for part, entry in enumerate(shop.ledger.residues(peer.chain.tip.base)):
        left[shop.layout.bounds(part)] = shop._residuals.read(entry, part) / (30 * UNIT)
    moved = before - shop.state.params
    assert np.abs(left).max() > 0.005
    assert np.abs(made - moved - left).max() < 1e-5


class KilledError(Exception):
    pass


@pytest.fixture
def story(run, gradient):
    """Three rounds with feedback, some of our parts missed, another contributor in one; killed at step `kill`."""

    def tell(name, kill):
        peer, steps = run(name, **FEEDBACK), [0]

        def step():
            steps[0] += 1
            if steps[0] == kill:
                raise KilledError

        def stepping(rests):
            for rest in rests:
                step()  # between two parts, too
                yield rest

        def contribute(number):
            residuals = peer.workshop._residuals
            write, keep = residuals.write, residuals.keep
            residuals.write = lambda base, rests: (write(base, stepping(rests)), step())
            residuals.keep = lambda entry: (keep(entry), step())
            try:
                if number == 2:
                    return certify_with_another(peer, gradient(number), gradient(100))
                return peer.certify(gradient(number), parts=[0, 2, 3] if number == 1 else None)
            finally:
                residuals.write, residuals.keep = write, keep

        for number in range(3):
            certificate = None
            while peer.chain.tip.round == number:
                try:
                    # Killed before its root was journaled, the peer trains again; later, the same certificate comes.
                    certificate = certificate or contribute(number)
                    step()
                    peer.workshop.commit(certificate)
                    step()
                    peer.log(certificate)
                    step()
                    if number % 2:
                        peer.save()
                    step()
                except KilledError:
                    peer.start()
            peer.workshop.ledger.check()
        return peer, steps[0]

    return tell


def certify_with_another(peer, ours, theirs):
    """Another peer's contribution does not pass our ledger: it is encoded by a workshop of its own."""
    shop = peer.workshop
    other = Workshop(peer.manifest, peer.blobs, shop.state, own=b"another", residuals=MemoryResiduals())
    encode, turns = shop.encode, iter((shop, other))
    shop.encode = lambda *args: encode(*args) if next(turns) is shop else other.encode(*args)
    try:
        return peer.certify(ours, theirs)
    finally:
        shop.encode = encode


def test_killed_at_any_step_it_goes_on_as_if_nothing_had_happened(story):
    peer, steps = story("whole", kill=0)
    tip, digest = peer.chain.tip.id, peer.digest
    residuals = [peer.workshop._residuals.read(e, p) for p, e in enumerate(peer.workshop.ledger.residues(tip))]
    assert steps == 3 * (5 + 2 + 4)
    for kill in range(1, steps + 1):
        again, _ = story(f"kill-{kill}", kill)
        again.start()
        assert (again.chain.tip.id, again.digest) == (tip, digest), kill
        held = again.workshop.ledger.residues(tip)
        for part, expected in enumerate(residuals):
            assert np.array_equal(again.workshop._residuals.read(held[part], part), expected), (kill, part)


@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_a_rest_that_a_power_cut_took_is_zero_and_the_accounts_still_add_up(run, gradient, damage):
    peer = run(**FEEDBACK)
    peer.commit(peer.certify(gradient(1)))
    path = next((peer.folder / "residuals").glob("*.rest"))
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: 8 * 1100] if damage == "short" else data[:-1] + bytes([data[-1] ^ 1]))
    peer.start()
    peer.commit(peer.certify(np.zeros(5000, np.float32) + np.float32(1e-3)))
    peer.workshop.ledger.check()
    assert peer.start().chain.tip.round == 2


def test_a_switch_of_lineage_takes_the_ledger_along(run, gradient):
    ours, theirs = run("ours", **FEEDBACK), run("theirs", **FEEDBACK)
    first = ours.commit(ours.certify(gradient(1)), save=True)
    theirs.copy_results(ours)
    theirs.commit(first)
    second = ours.commit(ours.certify(gradient(2)))
    theirs.fork()
    theirs.commit(theirs.certify())
    ours.copy_results(theirs)
    ours.workshop.adopt(theirs.lineage())
    ledger, parts = ours.workshop.ledger, range(ours.workshop.layout.parts)
    assert {entry.base for entry in ledger.residues(theirs.chain.tip.id)} == {first.value.parent}
    assert all(ledger.weights(part) == (60, 30, 30) for part in parts)
    ledger.check()
    ours.workshop.adopt(ours.lineage())
    assert {entry.base for entry in ledger.residues(second.id)} == {first.id}
    assert all(ledger.weights(part) == (60, 60, 0) for part in parts)
    ledger.check()


def test_rests_older_than_is_kept_are_removed_from_the_disk(run, gradient):
    peer = run(**FEEDBACK)
    for number in range(11):
        peer.commit(peer.certify(gradient(number)))
        assert len(list((peer.folder / "residuals").iterdir())) <= 2 * 9
    assert len(peer.workshop.ledger.entries) == 8
    (peer.folder / "residuals" / "stray.rest").write_bytes(b"x")
    peer.start()
    assert len(list((peer.folder / "residuals").iterdir())) == 2 * 8
    peer.workshop.ledger.check()
