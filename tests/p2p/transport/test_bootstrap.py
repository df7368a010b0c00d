"""Why a peer cannot join: six causes, six sentences with phase, address and family, in bounded time; and it goes on."""

import asyncio
import errno
import os
import socket
import threading
import time

import pytest

from atoll.p2p.transport import diagnose
from atoll.p2p.transport.address import parse_address
from atoll.p2p.transport.diagnose import explain_daemon_error, explain_os_error, probe
from atoll.p2p.transport.port import TransportError
from atoll.protocol.identity import Identity, peer_name

STRANGER = peer_name(Identity.generate().peer_id)


@pytest.fixture
def closed_port():
    """A port on which nobody listens: bound here, so that nobody else takes it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


async def problem_of(start, address):
    started = time.monotonic()
    peer = await start(initial_peers=(address,))
    try:
        await asyncio.wait_for(peer.transport.settled(), 15)
        assert time.monotonic() - started < 15
        [problem] = peer.transport.problems()
        assert problem["address"] == address
        return problem
    finally:
        await peer.transport.close()


async def test_a_closed_port(start, closed_port):
    problem = await problem_of(start, f"/ip4/127.0.0.1/tcp/{closed_port}/p2p/{STRANGER}")
    assert problem["code"] == "refused"
    assert problem["message"].startswith(f"Bootstrap: 127.0.0.1 port {closed_port} refuses the connection (IPv4, TCP)")


async def test_another_peer_at_the_address(start):
    peer = await start()
    try:
        real, host = peer.transport.addresses()[0].split("/p2p/")[1], peer.transport.addresses()[0].split("/p2p/")[0]
        problem = await problem_of(start, f"{host}/p2p/{STRANGER}")
    finally:
        await peer.transport.close()
    assert problem["code"] == "wrong_peer_id"
    assert problem["message"].startswith("Bootstrap: another peer listens at 127.0.0.1")
    assert real in problem["message"]
    assert STRANGER in problem["message"]
    assert "IPv4, TCP" in problem["message"]


async def test_something_that_is_no_peer_at_the_address(start):
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        problem = await problem_of(start, f"/ip4/127.0.0.1/tcp/{port}/p2p/{STRANGER}")
    assert problem["code"] == "not_a_peer"


async def test_a_name_without_an_address(start, monkeypatch):
    def unknown(*_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(diagnose.socket, "getaddrinfo", unknown)
    problem = await problem_of(start, f"/dns4/no-such-host.invalid/tcp/4001/p2p/{STRANGER}")
    assert problem["code"] == "unresolved"
    assert problem["message"].startswith("Bootstrap: the name no-such-host.invalid has no IPv4 address")


async def test_a_name_server_that_does_not_answer_is_given_up(monkeypatch):
    asked = threading.Event()
    monkeypatch.setattr(diagnose.socket, "getaddrinfo", lambda *_: asked.wait(5) and [])
    monkeypatch.setattr(diagnose, "RESOLVE_TIMEOUT_S", 0.1)
    with pytest.raises(TransportError, match="no answer within"):
        await probe(parse_address("/dns4/slow.invalid/tcp/4001"), "Bootstrap")
    asked.set()


async def test_a_local_host_name_is_resolved_and_each_of_its_addresses_tried():
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await probe(parse_address(f"/dns4/localhost/tcp/{port}"), "Bootstrap")


def test_dropped_packets_have_their_own_sentence():
    address = parse_address(f"/ip4/203.0.113.7/tcp/4001/p2p/{STRANGER}")
    for error in (TimeoutError(), TimeoutError(errno.ETIMEDOUT, "Connection timed out")):
        told = explain_os_error(error, address, "203.0.113.7", "Bootstrap")
        assert told.code == "timeout"
        assert str(told).startswith("Bootstrap: 203.0.113.7 port 4001 does not answer within 4 s (IPv4, TCP): packets")


@pytest.mark.parametrize(("number", "start"), [
    (errno.ENETUNREACH, "Bootstrap: this machine has no IPv4 route to 203.0.113.7 port 4001"),
    (errno.EHOSTUNREACH, "Bootstrap: no IPv4 route leads to 203.0.113.7 port 4001"),
])
def test_an_ipv4_address_on_an_ipv6_only_host_has_its_own_sentence(number, start):
    address = parse_address(f"/ip4/203.0.113.7/tcp/4001/p2p/{STRANGER}")
    told = explain_os_error(OSError(number, os.strerror(number)), address, "203.0.113.7", "Bootstrap")
    assert told.code == "no_route"
    assert str(told).startswith(start)
    assert "use an IPv6 address" in str(told)


def test_every_cause_has_another_sentence():
    address = parse_address(f"/ip4/203.0.113.7/tcp/4001/p2p/{STRANGER}")
    causes = [
        explain_os_error(ConnectionRefusedError(errno.ECONNREFUSED, "refused"), address, "203.0.113.7", "Bootstrap"),
        explain_os_error(TimeoutError(), address, "203.0.113.7", "Bootstrap"),
        explain_os_error(OSError(errno.ENETUNREACH, "x"), address, "203.0.113.7", "Bootstrap"),
        explain_os_error(OSError(errno.EIO, "x"), address, "203.0.113.7", "Bootstrap"),
        explain_daemon_error(
            f"peer id mismatch: expected {STRANGER}, but remote key matches Qm1", address, "Bootstrap"),
        explain_daemon_error("failed to dial: dial to self attempted", address, "Bootstrap"),
        explain_daemon_error("* [/ip4/x] failed to negotiate security protocol: EOF", address, "Bootstrap"),
        explain_daemon_error("something new", address, "Bootstrap"),
    ]
    assert len({cause.code for cause in causes}) == len(causes) - 1  # the two unnamed ones share `unreachable`
    assert len({str(cause) for cause in causes}) == len(causes)
    assert all(str(cause).startswith("Bootstrap: ") and address.text in str(cause) for cause in causes)


@pytest.mark.parametrize("text", [
    "", "127.0.0.1:4001", "/ip4/127.0.0.1", "/ip4/127.0.0.256/tcp/1", "/ip4/::1/tcp/1", "/ip6/127.0.0.1/tcp/1",
    "/ip4/127.0.0.1/tcp/65536", "/ip4/127.0.0.1/tcp/-1", "/ip4/127.0.0.1/tcp/١", "/ip4/127.0.0.1/udp/1",
    "/ip4/127.0.0.1/sctp/1", "/dns4//tcp/1", "/ip4/127.0.0.1/tcp/1/p2p", "/ip4/127.0.0.1/tcp/1/p2p/Qm1",
    f"/ip4/127.0.0.1/tcp/1/p2p/{STRANGER}/p2p/{STRANGER}", "/ip4/127.0.0.1/tcp/1/ws", "/unix/tmp/x/y/z",
    "/ip4/127.0.0.1/tcp/1\n", "/ip6/fe80::1%eth0/tcp/1", "/" * 2000, "/ip4/127.0.0.1/tcp/1/p2p-circuit",
])
def test_a_malformed_address_has_its_own_sentence_and_shows_how_one_looks(text):
    with pytest.raises(TransportError, match=r"is not an address of a peer: .* It looks like /ip4/") as caught:
        parse_address(text, need_peer=True)
    assert caught.value.code == "malformed_address"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("text", "family", "transport", "bare"), [
    ("/ip4/1.2.3.4/tcp/5", "IPv4", "tcp", "/ip4/1.2.3.4/tcp/5"),
    (f"/ip6/::1/udp/5/quic-v1/p2p/{STRANGER}", "IPv6", "udp", "/ip6/::1/udp/5/quic-v1"),
    (f"/dns4/example.org/tcp/5/p2p/{STRANGER}", "IPv4", "tcp", "/dns4/example.org/tcp/5"),
])
def test_an_address_is_taken_apart(text, family, transport, bare):
    address = parse_address(text)
    assert (address.family, address.transport, address.without_peer) == (family, transport, bare)
    assert (address.peer is None) == ("p2p" not in text)
    assert address.with_port(77) == text.replace("/5", "/77")


def test_a_relayed_address_names_the_peer_behind_the_relay():
    relay, peer = peer_name(Identity.generate().peer_id), Identity.generate().peer_id
    address = parse_address(f"/ip4/1.2.3.4/tcp/5/p2p/{relay}/p2p-circuit/p2p/{peer_name(peer)}", need_peer=True)
    assert address.relayed
    assert address.peer == peer
    assert address.without_peer.endswith(f"/p2p/{relay}/p2p-circuit")


async def test_joining_goes_on_by_itself_once_the_fault_is_lifted(start, home, connected):
    key = home / "late"
    late = Identity.load_or_create(key)
    first = await start(key=key, identity=late)
    [address] = first.transport.addresses()
    await first.transport.close()
    joiner = await start(initial_peers=(address,))
    try:
        await joiner.transport.settled()
        assert [problem["code"] for problem in joiner.transport.problems()] == ["refused"]
        again = await start(key=key, identity=late, host_maddrs=(address.split("/p2p/")[0],))
        try:
            await connected(joiner, late.peer_id)
            async with asyncio.timeout(10):  # connected first, then noted so by whoever was trying
                while joiner.transport.problems():  # noqa: ASYNC110  the list has no event
                    await asyncio.sleep(0.02)
        finally:
            await again.transport.close()
    finally:
        await joiner.transport.close()


async def test_one_initial_peer_out_of_reach_delays_no_other(start, closed_port, connected):
    peer = await start()
    try:
        dead = f"/ip4/127.0.0.1/tcp/{closed_port}/p2p/{STRANGER}"
        joiner = await start(initial_peers=(dead, *peer.transport.addresses()))
        try:
            await connected(joiner, peer.identity.peer_id)
        finally:
            await joiner.transport.close()
    finally:
        await peer.transport.close()


async def test_remembered_peers_that_are_gone_or_nonsense_are_no_problem_where_others_are(start, closed_port, until):
    peer = await start()
    dead = f"/ip4/127.0.0.1/tcp/{closed_port}/p2p/{STRANGER}"
    try:
        joiner = await start(remembered_peers=("/nonsense", dead, *peer.transport.addresses()))
        try:
            await until(lambda: peer.identity.peer_id in joiner.transport._keeper.seen)
            assert joiner.transport.problems() == []
        finally:
            await joiner.transport.close()
        alone = await start(remembered_peers=(dead,))
        try:
            await alone.transport.settled()
            assert [problem["code"] for problem in alone.transport.problems()] == ["refused"]
        finally:
            await alone.transport.close()
    finally:
        await peer.transport.close()
