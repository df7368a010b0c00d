"""What only the real transport has: a daemon that dies, ports, sockets on disk, a DHT that strangers write to."""

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from atoll.p2p.transport import dht_records, torchless
from atoll.p2p.transport.p2pd import remove_stale_sockets
from atoll.p2p.transport.port import TransportError
from atoll.p2p.transport.slots import PER_PEER
from atoll.protocol.identity import Identity, peer_name
from atoll.protocol.records import PeerRecord

ECHO = "/atoll/1/test/echo"


async def echo(stream):
    while True:
        await stream.write(await stream.read_exactly(4, timeout_s=30), timeout_s=5)


def names(folder):
    return {path.name for path in folder.iterdir()}


def hivemind_files():
    """Sockets where hivemind would put them by itself."""
    return {name for name in names(Path("/tmp")) if name.startswith("hivemind-")}


async def answers(transport, peer_id):
    stream = await transport.open(peer_id, ECHO, timeout_s=5)
    try:
        await stream.write(b"ping", timeout_s=5)
        return await stream.read_exactly(4, timeout_s=5) == b"ping"
    finally:
        await stream.close()


def sealed(peer, run_id, **changes):
    made = PeerRecord(**{
        "peer_id": peer.identity.peer_id, "run_id": run_id, "addresses": (), "trains": True, "sequence": 1,
        "expires_s": time.time() + 60, **changes})
    return made, made.seal(peer.identity)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_dead_or_frozen_daemon_is_replaced_under_the_same_key_and_port(start, blow, until):
    one = await start()
    other = await start(initial_peers=one.transport.addresses())
    try:
        one.transport.serve(ECHO, echo)
        await other.transport.settled()
        run_id = os.urandom(32)
        made, data = sealed(one, run_id)
        assert await one.transport.put(made.key, made.subkey, data, lifetime_s=60)
        assert await answers(other.transport, one.identity.peer_id)
        open_stream = await other.transport.open(one.identity.peer_id, ECHO, timeout_s=5)
        before, addresses = one.transport.daemon_pid, one.transport.addresses()

        os.kill(before, blow)
        await until(lambda: one.transport.repairs == 1)

        assert one.transport.daemon_pid not in (None, before)
        assert not psutil.pid_exists(before)
        assert one.transport.addresses() == addresses
        with pytest.raises(TransportError):
            await open_stream.read_exactly(1, timeout_s=5)
        await other.transport.connect(one.identity.peer_id, addresses, timeout_s=5)
        assert await answers(other.transport, one.identity.peer_id)
        assert await other.transport.get(made.key) == {made.subkey: data}
        assert await one.transport.get(made.key) == {made.subkey: data}
        assert one.transport.problems() == []
    finally:
        await one.transport.close()
        await other.transport.close()


async def test_after_a_repair_the_peer_dials_those_it_was_connected_to(start, until, connected):
    one = await start()
    other = await start()
    try:
        await one.transport.connect(other.identity.peer_id, other.transport.addresses(), timeout_s=5)
        other.transport.serve(ECHO, echo)
        await until(lambda: other.identity.peer_id in one.transport._keeper.seen)
        os.kill(one.transport.daemon_pid, signal.SIGKILL)
        await until(lambda: one.transport.repairs == 1)
        await connected(other, one.identity.peer_id)
    finally:
        await one.transport.close()
        await other.transport.close()


@pytest.mark.parametrize("nat", [False, True])
async def test_nothing_but_the_p2p_port_listens(start, nat):
    peer = await start(nat=nat)
    try:
        port = int(peer.transport.addresses()[0].split("/")[4])
        processes = [psutil.Process(), psutil.Process(peer.transport.daemon_pid)]
        inet = [one for process in processes for one in process.net_connections("inet")]
        listening = [one for one in inet if one.status == psutil.CONN_LISTEN or one.type == socket.SOCK_DGRAM]
        assert [(one.laddr.ip, one.laddr.port) for one in listening] == [("127.0.0.1", port)]
    finally:
        await peer.transport.close()


async def test_sockets_lie_under_the_prefix_and_are_gone_after_the_end_and_stale_ones_at_the_start(start, home):
    folder = home / "run dir ü"
    folder.mkdir()
    stale = folder / "p2p-p2pd-stale.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(stale))
    (folder / "p2p-p2pd-notes.sock").write_text("a file of somebody else's")
    in_tmp = hivemind_files()
    peer = await start(socket_prefix=f"{folder}/p2p-")
    try:
        assert stale.name not in names(folder)
        assert len(names(folder)) > 1
        assert hivemind_files() <= in_tmp
    finally:
        await peer.transport.close()
    assert names(folder) == {"p2p-p2pd-notes.sock"}
    assert remove_stale_sockets(f"{folder}/p2p-") == 0


async def test_a_closed_peer_leaves_no_process_and_its_port_can_be_used_at_once(start):
    peer = await start()
    pid, port = peer.transport.daemon_pid, peer.transport.addresses()[0].split("/")[4]
    await peer.transport.close()
    await peer.transport.close()
    assert not psutil.pid_exists(pid)
    again = await start(host_maddrs=(f"/ip4/127.0.0.1/tcp/{port}",))
    assert again.transport.addresses()[0].split("/")[4] == port
    await again.transport.close()


async def test_a_taken_port_is_an_error_at_once_even_where_p2pd_would_share_it(start):
    peer = await start()
    port = peer.transport.addresses()[0].split("/")[4]
    try:
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(TransportError) as caught:
                await start(host_maddrs=(f"/ip4/{host}/tcp/{port}",))
            assert caught.value.code == "port_taken"
            assert str(caught.value).startswith(f"Listening: port {port} on {host} (IPv4, TCP) is taken")
    finally:
        await peer.transport.close()


@pytest.mark.parametrize(("changes", "code"), [
    ({"host_maddrs": ("/ip4/203.0.113.9/tcp/0",)}, "bad_listen_address"),
    ({"host_maddrs": ("/dns4/localhost/tcp/0",)}, "bad_listen_address"),
    ({"host_maddrs": ("/ip4/127.0.0.1",)}, "malformed_address"),
    ({"announce_maddrs": ("127.0.0.1:4001",)}, "malformed_address"),
    ({"initial_peers": ("/ip4/127.0.0.1/tcp/4001",)}, "malformed_address"),
    ({"socket_prefix": "/tmp/" + "x" * 90}, "socket_path"),
    ({"socket_prefix": "/no/such/folder/p2p-"}, "socket_path"),
    ({"peer_id": Identity.generate().peer_id}, "bad_identity"),
])
async def test_a_local_fault_is_a_named_error_at_once(start, changes, code):
    with pytest.raises(TransportError) as caught:
        await start(**changes)
    assert caught.value.code == code


async def test_a_peer_with_too_many_open_streams_waits_for_a_slot_and_says_so(start):
    one = await start()
    other = await start(initial_peers=one.transport.addresses())
    try:
        one.transport.serve(ECHO, echo)
        await other.transport.settled()
        assert await answers(other.transport, one.identity.peer_id)
        streams = [await other.transport.open(one.identity.peer_id, ECHO, timeout_s=5) for _ in range(PER_PEER)]
        with pytest.raises(TransportError, match="too many streams"):
            await other.transport.open(one.identity.peer_id, ECHO, timeout_s=0.2)
        waiting = asyncio.create_task(other.transport.open(one.identity.peer_id, ECHO, timeout_s=5))
        await streams[0].close()
        streams.append(await waiting)
        for stream in streams:
            await stream.close()
    finally:
        await one.transport.close()
        await other.transport.close()


async def test_a_dht_node_keeps_nothing_but_valid_records_whatever_a_stranger_sends(start):
    one = await start()
    other = await start(initial_peers=one.transport.addresses())
    try:
        await other.transport.settled()
        hivemind = torchless.load()
        node, target = other.transport._keeper._daemon.node, hivemind.PeerID(one.identity.peer_id)
        run_id = os.urandom(32)
        made, data = sealed(other, run_id)
        pack = node.protocol.serializer.dumps
        key = dht_records.dht_key(hivemind, made.key)
        elsewhere = dht_records.dht_key(hivemind, "atoll/1/peers/other")
        foreign = peer_name(one.identity.peer_id)
        soon = time.time() + 30

        async def store(key_id, value, subkey, expires_s):
            answer = await node.protocol.call_store(target, [key_id], [value], [expires_s], subkeys=[subkey])
            return list(answer)

        assert await store(key, pack(b"junk"), made.subkey, soon) == [False]
        assert await store(key, b"\xc1", made.subkey, soon) == [False]
        assert await store(key, pack(data), foreign, soon) == [False]
        assert await store(key, pack(data), None, soon) == [False]
        assert await store(key, pack(data), made.subkey, made.expires_s + 1) == [False]
        assert await store(elsewhere, pack(data), made.subkey, soon) == [False]
        kept = one.transport._keeper._daemon.node.protocol.storage
        assert len(kept) == 0
        assert await store(key, pack(data), made.subkey, soon) == [True]
        assert await one.transport.get(made.key) == {made.subkey: data}
    finally:
        await one.transport.close()
        await other.transport.close()


async def test_invalid_entries_that_another_node_holds_are_left_out_on_read(start):
    one = await start()
    other = await start(initial_peers=one.transport.addresses())
    try:
        await other.transport.settled()
        hivemind = torchless.load()
        run_id = os.urandom(32)
        made, data = sealed(other, run_id)
        storage = one.transport._keeper._daemon.node.protocol.storage
        key = dht_records.dht_key(hivemind, made.key)
        pack = one.transport._keeper._daemon.node.protocol.serializer.dumps
        storage.store_subkey(key, made.subkey, pack(data), time.time() + 30)
        assert await other.transport.get(made.key) == {made.subkey: data}
        storage.store_subkey(key, "liar", pack(b"junk"), time.time() + 30)
        assert await one.transport.get(made.key) == {made.subkey: data}
        assert "liar" not in await other.transport.get(made.key)
    finally:
        await one.transport.close()
        await other.transport.close()


def test_a_node_holds_a_bounded_number_of_records(monkeypatch):
    monkeypatch.setattr(dht_records, "MAX_RECORDS", 3)
    storage = dht_records.make_storage(torchless.load())
    later = time.time() + 60
    assert [storage.store_subkey(b"k", str(n), b"v", later) for n in range(4)] == [True, True, True, False]
    assert storage.store_subkey(b"k", "0", b"newer", later + 1)
    assert not storage.store_subkey(b"other", "0", b"v", later)


def test_the_records_of_one_run_never_outgrow_what_one_answer_can_carry():
    storage = dht_records.make_storage(torchless.load())
    later = time.time() + 60
    kept = [storage.store_subkey(b"k", str(n), bytes(4096), later) for n in range(600)]
    assert sum(kept) == dht_records.MAX_KEY_BYTES // 4096
    assert storage.store_subkey(b"k", "0", bytes(4096), later + 1)
    assert storage.store_subkey(b"other", "0", bytes(4096), later)
