"""Tickets: one word, for one peer in one run, by its owner alone; a sentence for anything else."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.node.config import NodeConfig
from atoll.node.errors import HomeError, UsageError
from atoll.node.exit_codes import ExitCode
from atoll.node.launch import Launch
from atoll.node.run_source import resume_run, take_run, take_ticket
from atoll.node.service_process import ProcessSettings
from atoll.node.ticket import PREFIX, Ticket, parse_ticket
from atoll.protocol.errors import SignatureError
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.standing import check_ticket

RUN_ID = bytes(range(32))
OWNER, PEER, OTHER = Identity(b"\1" * 32), Identity(b"\2" * 32), Identity(b"\3" * 32)
WORD = Ticket(RUN_ID, PEER.peer_id, bytes(range(64))).word


@pytest.fixture
def owned(home, book, tmp_path):
    """A home that owns a run; (home, run, manifest file)."""
    run = book()
    key = run.keys[0]
    seed = key._key.private_bytes_raw()
    home.identity.write_bytes(b"\x08\x01\x12\x40" + seed + key._public)
    home.identity.chmod(0o600)
    path = tmp_path / "r.manifest"
    path.write_bytes(run.manifest.signed_bytes())
    return home, run, path


def test_a_ticket_is_one_word_that_comes_back():
    assert WORD.isalnum()
    assert len(WORD) < 220
    ticket = parse_ticket(f"  {WORD[:70]}\n {WORD[70:]}\r\n")
    assert ticket == Ticket(RUN_ID, PEER.peer_id, bytes(range(64)))


@given(st.data())
def test_a_changed_or_lost_letter_is_noticed(data):
    place = data.draw(st.integers(len(PREFIX), len(WORD) - 1))
    letter = data.draw(st.sampled_from("123ABCxyz0Il-"))
    for damaged in (WORD[:place] + letter + WORD[place + 1:], WORD[:place] + WORD[place + 1:], WORD[:place]):
        if damaged != WORD:
            with pytest.raises(UsageError):
                parse_ticket(damaged)


@given(st.text(max_size=200))
def test_any_text_ends_in_one_sentence(text):
    for candidate in (text, PREFIX + text, text * 500):
        with pytest.raises(UsageError) as caught:
            parse_ticket(candidate)
        assert len(caught.value.args[0]) < 300


def test_it_is_good_for_one_peer_in_one_run_by_its_owner_alone(book):
    run = book()
    owner, peer = run.keys[0], run.keys[4]
    ticket = Ticket.issue(owner, run.manifest, peer.peer_id)
    run_id, theirs = run.manifest.run_id, peer.peer_id
    assert parse_ticket(ticket.word) == ticket
    ticket.check(run_id, theirs, owner.peer_id)
    ticket.check(run_id, theirs, None)
    check_ticket(owner.peer_id, run_id, theirs, ticket.signature)
    with pytest.raises(UsageError, match="for the run"):
        ticket.check(bytes(32), theirs, owner.peer_id)
    with pytest.raises(UsageError, match=r"this home's key is"):
        ticket.check(run_id, OTHER.peer_id, owner.peer_id)
    with pytest.raises(UsageError, match="not signed by the run's owner"):
        dataclasses.replace(ticket, signature=bytes(64)).check(run_id, theirs, owner.peer_id)
    with pytest.raises(SignatureError):
        check_ticket(owner.peer_id, run_id, OTHER.peer_id, ticket.signature)
    with pytest.raises(UsageError, match="only the owner's"):
        Ticket.issue(peer, run.manifest, theirs)


def test_the_owner_prints_one_on_the_command_line(atoll, one_sentence, owned, tmp_path):
    home, run, manifest = owned
    name = peer_name(run.keys[4].peer_id)
    done = atoll("run", "admit", name, "--home", home.root, "--run", manifest)
    assert done.returncode == 0, done
    parse_ticket(done.stdout).check(run.manifest.run_id, run.keys[4].peer_id, run.manifest.owner)
    assert "on no run" in one_sentence(atoll("run", "admit", name, "--home", home.root), ExitCode.USAGE)
    take_run(home, str(manifest))
    home.current_run.write_text(run.manifest.run_id.hex())
    assert atoll("run", "admit", name, "--home", home.root).stdout == done.stdout
    sentence = one_sentence(atoll("run", "admit", "12D3Koo", "--home", home.root), ExitCode.USAGE)
    assert "atoll id" in sentence
    assert atoll("id", "--home", tmp_path / "guest").returncode == 0
    sentence = one_sentence(
        atoll("run", "admit", name, "--home", tmp_path / "guest", "--run", manifest), ExitCode.USAGE)
    assert "only the owner's" in sentence


def test_up_refuses_a_ticket_that_is_not_for_it_before_anything_starts(atoll, one_sentence, owned):
    home, run, manifest = owned
    own = run.keys[0].peer_id
    cases = {
        "nonsense": "is no ticket",
        Ticket(bytes(32), own, bytes(64)).word: "for the run",
        Ticket.issue(run.keys[0], run.manifest, OTHER.peer_id).word: "this home's key is",
        Ticket(run.manifest.run_id, own, bytes(64)).word: "not signed by the run's owner",
    }
    for word, expected in cases.items():
        done = atoll("up", "--home", home.root, "--run", manifest, "--ticket", word)
        assert expected in one_sentence(done, ExitCode.USAGE)
        assert not (home.run_folder(run.manifest.run_id) / "ticket").exists()
        assert not home.current_run.exists()
    done = atoll("up", "--home", home.root, "--no-trainer", "--ticket", WORD)
    assert "give the run with --run" in one_sentence(done, ExitCode.USAGE)


def test_a_ticket_is_kept_and_reaches_the_service_of_every_later_start(owned):
    home, run, manifest = owned
    ticket = Ticket.issue(run.keys[0], run.manifest, PEER.peer_id)
    source = take_ticket(home, take_run(home, str(manifest)), ticket.word, PEER.peer_id)
    home.current_run.write_text(run.manifest.run_id.hex())
    again = resume_run(home)
    assert again is not None
    assert source.ticket == again.ticket == ticket.signature
    start = Launch(home, NodeConfig(loopback=True), 4001, PEER.peer_id, again).service()
    assert ProcessSettings.read(start.settings).service.ticket == ticket.signature
    bare = Launch(home, NodeConfig(loopback=True, trainer=False), 4001, PEER.peer_id, None).service()
    assert ProcessSettings.read(bare.settings).service.ticket == b""
    (home.run_folder(run.manifest.run_id) / "ticket").write_text("atollticket1zzzz")
    with pytest.raises(HomeError, match="delete it"):
        resume_run(home)
