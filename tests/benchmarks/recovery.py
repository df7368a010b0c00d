"""What a dead peer costs the others: seconds of a round in whose exchange one is killed, against those of a normal one.

    python tests/benchmarks/recovery.py [--peers 4] [--inner-steps 10] [--normal 6] [--kills 2] [--json]

Ordinary daemons with the demo's settings, on this machine. Each kill is SIGKILL to a whole daemon while it is in
EXCHANGE, the ballot's leader and another peer in turn; the dead one is started again, and votes again before the next
dies. The bound that is held: a hit round takes at most 1.5 normal ones plus `gone_after_s`. Exit code 1 where one took
longer. All peers share this machine, so whoever dies leaves its share of it to the others, and whatever else runs
here is in the figures: the load average is printed with them.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from atoll.node.client import Client
from atoll.node.demo.plan import DemoPlan
from atoll.node.demo.swarm import Swarm
from atoll.node.demo.watch import ask_status
from atoll.protocol.errors import AtollError

FACTOR = 1.5
PATIENCE_S = 300.0
POLL_S = 0.02


class Recovery:
    def __init__(self, swarm, manifest):
        self._swarm, self.peers = swarm, swarm.peers
        self.gone_after_s = manifest.draft.exchange.gone_after_s
        self.normal, self.hits = [], []

    async def measure(self, normal, kills):
        await self._swarm.start([1])
        await self._until("peer 1 listens", lambda seen: seen[0].get("addresses"))
        await self._swarm.start(range(2, len(self.peers) + 1))
        await self._until("everybody contributes", lambda seen: self._settled())
        await self._normal_rounds(normal)
        for _ in range(kills):
            for role in ("leader", "other"):
                await self._hit(role)
                await self._until("the dead one votes again", lambda seen: self._settled())
                self._note_return()

    async def _normal_rounds(self, count):
        [first, *_] = await self._look()
        begin = first["round"]
        await self._until(f"{count} rounds", lambda seen: seen[0].get("round", 0) >= begin + count)
        rows = self._rows(self.peers[0])[begin:begin + count]
        self.normal += [row["seconds"] for row in rows]
        say(f"normal rounds: {', '.join(f'{seconds:.1f}' for seconds in self.normal)} s")

    async def _hit(self, role):
        victim, status = await self._catch(role)
        await self._swarm.kill([victim.index])
        died, hit = time.monotonic(), status["round"] + 1
        survivors = [peer for peer in self.peers if peer is not victim]
        await self._until(
            f"round {hit} and another", lambda seen: min(s.get("round", 0) for s in seen if s) > hit, survivors)
        rows = [self._rows(peer)[hit - 1] for peer in survivors]
        seconds, ballot = max(row["seconds"] for row in rows), rows[0]["ballot"]
        following = max(self._rows(peer)[hit]["seconds"] for peer in survivors)
        listed = victim.name in {row["peer_id"] for row in rows[0]["contributors"]}
        self.hits.append({
            "role": role, "round": hit, "seconds": seconds, "next_round_seconds": following, "ballot": ballot,
            "victim_listed": listed, "ratio": seconds / self.normal_s, "load": os.getloadavg()[0],
        })
        say(f"{role} killed in round {hit}: it took {seconds:.1f} s ({seconds / self.normal_s:.2f} normal ones, ballot "
            f"{ballot}, {'with' if listed else 'without'} the dead one), the next {following:.1f} s; "
            f"both certified {time.monotonic() - died:.1f} s after the kill")
        await self._swarm.start([victim.index])
        victim.killed = False

    def _note_return(self):
        """The longest round after the hit one, until the dead one was in two in a row: coming back may cost nobody."""
        hit = self.hits[-1]
        rows = max((self._rows(peer) for peer in self.peers), key=len)[hit["round"]:]
        hit["longest_until_back_s"], hit["rounds_until_back"] = max(row["seconds"] for row in rows), len(rows)
        say(f"back after {len(rows)} rounds, the longest of them {hit['longest_until_back_s']:.1f} s")

    async def _catch(self, role):
        """A peer in EXCHANGE that leads its ballot, or does not, but never the same ones each time."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for peer, status in zip(self.peers, await self._look(), strict=True):
                leads = status.get("leader") == peer.name
                if status.get("state") == "EXCHANGE" and leads is (role == "leader"):
                    return peer, status
            await asyncio.sleep(POLL_S)
        raise SystemExit(f"nobody was seen in EXCHANGE within {PATIENCE_S:.0f} s")

    def _settled(self):
        """Everybody votes, and everybody is in the last two certificates."""
        rows = max((self._rows(peer) for peer in self.peers), key=len)[-2:]
        names = {peer.name for peer in self.peers}
        return len(rows) == 2 and all(
            {entry["peer_id"] for entry in row["contributors"]} == names == set(row["electorate"]) for row in rows)

    async def _look(self, peers=None):
        return [status or {} for status in await asyncio.gather(*(ask_status(p.home) for p in peers or self.peers))]

    async def _until(self, what, condition, peers=None):
        deadline = time.monotonic() + PATIENCE_S
        while not condition(await self._look(peers)):
            if time.monotonic() > deadline:
                raise SystemExit(f"not within {PATIENCE_S:.0f} s: {what}; the homes are in {self._swarm.folder}")
            await asyncio.sleep(0.2)

    @staticmethod
    def _rows(peer):
        """Its certified rounds; none while it is dead or just starting."""
        try:
            return Client(peer.home).rounds()
        except AtollError:
            return []

    @property
    def normal_s(self):
        return statistics.median(self.normal)

    def result(self):
        bound = FACTOR * self.normal_s + self.gone_after_s
        return {
            "peers": len(self.peers), "normal_s": self.normal_s, "normal_rounds_s": self.normal,
            "gone_after_s": self.gone_after_s, "bound_s": bound, "hits": self.hits,
            "held": all(hit["seconds"] <= bound for hit in self.hits),
        }


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)


async def run(args):
    plan = DemoPlan(peers=args.peers, rounds=0, inner_steps=args.inner_steps)
    plan.check()
    with tempfile.TemporaryDirectory(prefix="atoll-recovery-") as folder:
        swarm = Swarm(plan, Path(folder))
        try:
            recovery = Recovery(swarm, await swarm.prepare())
            await recovery.measure(args.normal, args.kills)
            return recovery.result()
        finally:
            await swarm.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--inner-steps", type=int, default=10)
    parser.add_argument("--normal", type=int, default=6, metavar="N", help="rounds without a fault")
    parser.add_argument("--kills", type=int, default=2, metavar="N", help="of a leader and of another peer, each")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = asyncio.run(run(args))
    if args.json:
        print(json.dumps(result))
    else:
        print(f"normal round {result['normal_s']:.1f} s (median of {len(result['normal_rounds_s'])}), "
              f"gone_after_s {result['gone_after_s']:g}, bound {result['bound_s']:.1f} s")
        for hit in result["hits"]:
            print(f"  {hit['role']:<6} round {hit['round']}: {hit['seconds']:.1f} s = {hit['ratio']:.2f} normal, "
                  f"ballot {hit['ballot']}, next {hit['next_round_seconds']:.1f} s, longest until it was back "
                  f"{hit['longest_until_back_s']:.1f} s, load {hit['load']:.1f}")
        print("held" if result["held"] else "NOT held")
    return 0 if result["held"] else 1


if __name__ == "__main__":
    sys.exit(main())
