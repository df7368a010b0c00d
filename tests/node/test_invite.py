"""Invites: one short word, the same after a paste, and a sentence for anything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.node.errors import InviteError
from atoll.node.invite import MAX_ADDRESSES, PREFIX, format_invite, parse_invite
from atoll.protocol.identity import Identity, peer_name

RUN_ID = bytes(range(32))
PEERS = [peer_name(Identity(bytes([number]) * 32).peer_id) for number in range(12)]
ADDRESSES = [
    f"/ip4/203.0.113.7/tcp/4001/p2p/{PEERS[0]}",
    f"/ip4/203.0.113.7/udp/4001/quic-v1/p2p/{PEERS[1]}",
    f"/ip6/2001:db8::1/tcp/4001/p2p/{PEERS[2]}",
    f"/ip6/2001:db8::1/udp/65535/quic-v1/p2p/{PEERS[3]}",
    f"/dns4/train.example.org/tcp/4001/p2p/{PEERS[4]}",
    f"/ip4/203.0.113.7/tcp/4001/p2p/{PEERS[5]}/p2p-circuit/p2p/{PEERS[6]}",
    f"/ip6/2001:DB8:0:0::1/tcp/1/p2p/{PEERS[7]}",
]


def test_every_kind_of_address_comes_back_as_it_was():
    invite = parse_invite(format_invite(RUN_ID, ADDRESSES))
    assert invite.run_id == RUN_ID
    assert list(invite.addresses) == ADDRESSES


def test_it_is_one_short_word():
    word = format_invite(RUN_ID, ADDRESSES[:1])
    assert len(word) < 120
    assert word.isalnum()
    assert len(format_invite(RUN_ID, ADDRESSES[:4])) < 320


def test_it_survives_a_paste():
    word = format_invite(RUN_ID, ADDRESSES)
    wrapped = "  \n" + "\n ".join(word[start:start + 60] for start in range(0, len(word), 60)) + "\r\n"
    assert parse_invite(wrapped) == parse_invite(word)


def test_it_names_a_bounded_number_of_addresses_each_once():
    many = [f"/ip4/10.0.0.{number}/tcp/4001/p2p/{PEERS[number]}" for number in range(12)]
    assert list(parse_invite(format_invite(RUN_ID, [*many, *many])).addresses) == many[:MAX_ADDRESSES]
    with pytest.raises(InviteError, match="no address"):
        format_invite(RUN_ID, [])


@given(st.data())
def test_a_changed_or_lost_letter_is_noticed(data):
    word = format_invite(RUN_ID, ADDRESSES[:2])
    place = data.draw(st.integers(len(PREFIX), len(word) - 1))
    letter = data.draw(st.sampled_from("123ABCxyz0Il- "))
    for damaged in (word[:place] + letter + word[place + 1:], word[:place] + word[place + 1:], word[:place]):
        if damaged != word:
            with pytest.raises(InviteError):
                parse_invite(damaged)


@given(st.text(max_size=200))
def test_any_text_ends_in_one_sentence(text):
    for candidate in (text, PREFIX + text):
        with pytest.raises(InviteError) as caught:
            parse_invite(candidate)
        assert "\n" not in str(caught.value)


def test_a_huge_text_is_refused_quickly():
    with pytest.raises(InviteError, match="too long"):
        parse_invite(PREFIX + "z" * 1_000_000)
