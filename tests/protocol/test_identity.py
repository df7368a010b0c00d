"""One key, one PeerID on every stack, one file that only its owner reads, and signatures bound to their use."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.protocol.errors import IdentityError, MalformedError, SignatureError
from atoll.protocol.identity import (
    PEER_ID_BYTES,
    SIGNATURE_BYTES,
    Identity,
    check_peer_id,
    parse_peer,
    peer_name,
    verify,
)

# The Ed25519 vector of libp2p's peer-ids specification; hivemind and py-libp2p both print the same PeerID for it.
SPEC_KEY_FILE = bytes.fromhex(
    "08011240"
    "7e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"
    "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e",
)
SPEC_PEER = "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq"


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(SPEC_KEY_FILE)
    path.chmod(0o600)
    return path


def test_the_specification_s_key_file_gives_its_peer_id(key_file):
    identity = Identity.load(key_file)
    assert peer_name(identity.peer_id) == SPEC_PEER
    assert parse_peer(SPEC_PEER) == identity.peer_id
    assert identity.peer_id == bytes.fromhex("002408011220") + SPEC_KEY_FILE[36:]


def test_signatures_are_those_of_rfc_8032():
    identity = Identity(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert identity.peer_id[6:].hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    signature = identity.sign("vote", b"payload")
    assert len(signature) == SIGNATURE_BYTES
    assert identity.sign("vote", b"payload") == signature  # deterministic
    identity._key.public_key().verify(signature, b"atoll/1/vote\0payload")


def test_a_signature_holds_for_its_signer_domain_and_payload_alone():
    mine, other = Identity.generate(), Identity.generate()
    signature = mine.sign("vote", b"payload")
    verify(mine.peer_id, "vote", b"payload", signature)
    for peer, domain, payload, claimed in [
        (other.peer_id, "vote", b"payload", signature),
        (mine.peer_id, "manifest", b"payload", signature),
        (mine.peer_id, "vot", b"e\0payload", signature),
        (mine.peer_id, "vote", b"payloae", signature),
        (mine.peer_id, "vote", b"payload", signature[:-1]),
        (mine.peer_id, "vote", b"payload", b""),
        (mine.peer_id, "vote", b"payload", bytes(64)),
        (mine.peer_id, "vote", b"payload", signature + b"\0"),
    ]:
        with pytest.raises(SignatureError, match="12D3Koo"):
            verify(peer, domain, payload, claimed)


@given(place=st.integers(0, 63), bit=st.integers(0, 7))
def test_one_flipped_bit_breaks_a_signature(place, bit):
    identity = Identity(bytes(range(32)))
    signature = bytearray(identity.sign("vote", b"x"))
    signature[place] ^= 1 << bit
    with pytest.raises(SignatureError):
        verify(identity.peer_id, "vote", b"x", bytes(signature))


def test_a_new_key_file_is_private_and_stays_the_same(tmp_path):
    path = tmp_path / "key"
    made = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == 68
    assert Identity.load_or_create(path).peer_id == Identity.load(path).peer_id == made.peer_id
    assert Identity.load_or_create(tmp_path / "another").peer_id != made.peer_id


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o601])
def test_a_key_file_that_others_can_open_is_refused_with_the_remedy(key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(IdentityError, match=f"mode {mode:o}.*chmod 600"):
        Identity.load(key_file)


@pytest.mark.parametrize(
    "content",
    [b"", SPEC_KEY_FILE[:-1], SPEC_KEY_FILE + b"\0", b"\x08\x02" + SPEC_KEY_FILE[2:], SPEC_KEY_FILE[4:], bytes(68)],
    ids=["empty", "cut", "longer", "another key type", "raw", "zeros"],
)
def test_a_file_that_is_no_key_is_refused_and_left_as_it_is(key_file, content):
    key_file.write_bytes(content)
    for read in (Identity.load, Identity.load_or_create):
        with pytest.raises(IdentityError, match="not an Ed25519 key file"):
            read(key_file)
    assert key_file.read_bytes() == content


@pytest.mark.parametrize("place", [4, 35, 36, 67])
def test_a_damaged_key_is_seen(key_file, place):
    content = bytearray(SPEC_KEY_FILE)
    content[place] ^= 1
    key_file.write_bytes(bytes(content))
    with pytest.raises(IdentityError, match="is damaged"):
        Identity.load(key_file)


def test_a_missing_key_file_or_a_folder_in_its_place_is_one_sentence(tmp_path):
    with pytest.raises(IdentityError, match=r"cannot read the key file .*No such file"):
        Identity.load(tmp_path / "none")
    with pytest.raises(IdentityError, match=r"cannot read the key file|readable by others"):
        Identity.load(tmp_path)


@given(public=st.binary(min_size=32, max_size=32))
def test_the_text_of_a_peer_id_comes_back(public):
    peer = bytes.fromhex("002408011220") + public
    assert peer_name(peer).startswith("12D3Koo")
    assert parse_peer(peer_name(peer)) == peer


@given(text=st.text(alphabet="123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz0OIl ü", max_size=90))
def test_other_texts_are_refused(text):
    with pytest.raises(MalformedError, match="PeerID"):
        parse_peer(text)


@pytest.mark.parametrize(
    "text", ["", "1", "1" * 100_000, SPEC_PEER[:-1], SPEC_PEER + "1", "1" + SPEC_PEER, SPEC_PEER + " ", SPEC_PEER * 2,
             "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", SPEC_PEER.replace("o", "0", 1)],
    ids=lambda text: text[:12],
)
def test_near_misses_are_refused(text):
    with pytest.raises(MalformedError, match="PeerID"):
        parse_peer(text)


@pytest.mark.parametrize(
    "value", [None, 5, "x" * 38, b"", bytes(PEER_ID_BYTES), bytearray(PEER_ID_BYTES), SPEC_KEY_FILE[:38]],
)
def test_what_is_no_raw_peer_id_is_refused(value):
    with pytest.raises(MalformedError, match="not the PeerID"):
        check_peer_id(value)


def test_neither_repr_nor_text_of_an_identity_shows_the_private_key(key_file):
    identity = Identity.load(key_file)
    assert repr(identity) == str(identity) == f"Identity({SPEC_PEER})"
