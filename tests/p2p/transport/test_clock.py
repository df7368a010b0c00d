"""A machine whose clock is wrong takes part all the same, and a few wrong clocks move nobody."""

import asyncio
import json
import os
import subprocess
import sys
import time

import pytest

from atoll.p2p.transport.clock import PeerClocks
from atoll.protocol.records import open_record, record_key

WRONG = """
import asyncio, json, sys, time
shift, key, address, run_id = float(sys.argv[1]), sys.argv[2], sys.argv[3], bytes.fromhex(sys.argv[4])
true_time = time.time
time.time = lambda: true_time() + shift
from pathlib import Path
from atoll.p2p.transport.hivemind import HivemindTransport
from atoll.protocol.identity import Identity
from atoll.protocol.records import PeerRecord, record_key

async def main():
    identity = Identity.load_or_create(Path(key))
    transport = await HivemindTransport.create(
        identity_file=Path(key), peer_id=identity.peer_id, host_maddrs=("/ip4/127.0.0.1/tcp/0",), announce_maddrs=(),
        initial_peers=(address,), socket_prefix=key + "-", nat=False)
    try:
        await transport.settled()
        mine = PeerRecord(identity.peer_id, run_id, (), True, 1, transport.time_s() + 60)
        stored = await transport.put(mine.key, mine.subkey, mine.seal(identity), lifetime_s=60)
        found, problems = await transport.get(mine.key), transport.problems()
        print(json.dumps([stored, len(found), [one["code"] for one in problems]]), flush=True)
        await asyncio.to_thread(sys.stdin.readline)  # and go on answering meanwhile
    finally:
        await transport.close()

asyncio.run(main())
"""


def test_the_median_of_raw_clocks_counts_and_noise_does_not():
    clocks = PeerClocks()
    assert clocks.offset_s == 0
    assert clocks.observe(b"a", 3600.0) == 0, "of two clocks both sides choose the earlier one"
    assert clocks.observe(b"b", 3600.2) == 3600.0
    assert clocks.observe(b"a", 0.4) == 0
    assert clocks.observe(b"b", 1.4) == 0
    early = PeerClocks()
    assert early.observe(b"a", -3600.0) == -3600.0


def test_the_number_of_clocks_that_are_kept_is_bounded():
    clocks = PeerClocks()
    for number in range(1000):
        clocks.observe(number.to_bytes(2, "big"), 0.0)
    assert len(clocks._ahead_s) == 64


@pytest.mark.parametrize("shift_s", [3600.0])
async def test_a_peer_whose_clock_is_an_hour_ahead_joins_and_is_told(start, home, shift_s):
    one = await start()
    run_id = os.urandom(32)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRONG, str(shift_s), str(home / "w"), one.transport.addresses()[0], run_id.hex(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        stored, found, problems = json.loads(await asyncio.wait_for(child.stdout.readline(), 30))
        assert (stored, found, problems) == (True, 1, ["clock_off"])
        [(subkey, data)] = (await one.transport.get(record_key(run_id))).items()
        record = open_record(data, subkey=subkey, now_s=time.time(), run_id=run_id)
        assert abs(record.expires_s - time.time() - 60) < 10
        assert one.transport.problems() == []
    finally:
        child.stdin.close()
        await asyncio.wait_for(child.wait(), 15)
        child._transport.close()
        await one.transport.close()
