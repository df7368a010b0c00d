"""The faults that a seed brings: when, to whom, for how long. Kills and damages; never decides what is right.

Each fault has its own stream of chance, so that leaving one out leaves the others where they were. What DESIGN says
ends a run is never done: before the first certificate a quorum of the genesis voters stays, and later somebody who
holds a certified state.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from atoll.p2p.round import effects
from atoll.p2p.simulation.oracle import is_quorum
from atoll.p2p.simulation.plan import Fault
from atoll.protocol.certificate import Certificate, Vote
from atoll.protocol.digest import content_digest
from atoll.protocol.messages import Voted

if TYPE_CHECKING:
    from atoll.p2p.simulation.peer import Peer
    from atoll.p2p.simulation.world import World

RATES = {  # events in a run of 20 rounds
    Fault.CRASH: 3.0, Fault.RESTART: 0.4, Fault.GONE: 1.2, Fault.DISK_LOSS: 1.0, Fault.PARTITION: 0.8,
    Fault.LOSS: 0.8, Fault.REORDER: 0.8, Fault.SLOW: 1.0, Fault.CORRUPT: 0.8, Fault.LEAVE: 1.0,
    Fault.TORN_JOURNAL: 1.0, Fault.EQUIVOCATE: 0.8,
}
USUAL_ROUNDS = 20
LINGERS = 0.4  # of those who leave: they could go, and stay until they are voted out
CANNOT_VOTE = 0.25  # of the times in which a peer becomes slow


class Injector:
    def __init__(self, world: "World") -> None:
        self.world, self.quiet = world, False
        plan, seed = world.scenario.plan, world.scenario.seed
        self._dice = {fault: random.Random(f"atoll fault {fault} {seed}") for fault in Fault}
        self._acts: dict[Fault, Callable[[random.Random], bool]] = {
            Fault.CRASH: self._crash, Fault.RESTART: self._restart, Fault.GONE: self._gone,
            Fault.DISK_LOSS: self._disk_loss, Fault.PARTITION: self._partition, Fault.LOSS: self._loss,
            Fault.REORDER: self._reorder, Fault.SLOW: self._slow, Fault.CORRUPT: self._corrupt,
            Fault.LEAVE: self._leave, Fault.TORN_JOURNAL: self._torn, Fault.EQUIVOCATE: self._equivocate,
        }
        self._rarely = random.Random(f"atoll faults, rarely {seed}")
        self._plan = plan
        self.disturbed_at = 0.0

    def arm(self) -> None:
        """Draw when each fault strikes."""
        horizon = self.world.scenario.horizon_s
        for fault, act in self._acts.items():
            dice = self._dice[fault]
            if fault not in self._plan.faults:
                continue
            expected = RATES[fault] * self._plan.rounds / USUAL_ROUNDS * dice.uniform(0.0, 2.0)
            count = int(expected) + (dice.random() < expected % 1)
            for _ in range(count):
                self.world.clock.at(dice.uniform(0.0, horizon), self._strike, fault, act)
        if Fault.SKEW in self._plan.faults:
            self._note(Fault.SKEW, len(self.world.peers))
        if Fault.SLOW in self._plan.faults:
            self._note(Fault.SLOW, sum(peer.step_s > 2 for peer in self.world.peers))

    def heal(self) -> None:
        """No more faults; what can come back comes back."""
        self.quiet = True
        network = self.world.network
        network.loss = network.reorder = network.corruption = 0.0
        self._rejoin()
        for peer in self.world.peers:
            peer.die_in_save = None
            peer.step_s, peer.upload_bps = min(peer.step_s, 2.0), max(peer.upload_bps, 1e5)
            if peer.started and not peer.alive and not peer.gone and not peer.left:
                self._come_back(peer)

    def _strike(self, fault: Fault, act: Callable[[random.Random], bool]) -> None:
        if not self.quiet and act(self._dice[fault]):
            self._note(fault)
            self.disturbed_at = self.world.clock.now

    def _note(self, fault: Fault, count: int = 1) -> None:
        injected = self.world.network.injected
        injected[fault] = injected.get(fault, 0) + count

    def _later(self, delay: float, action: Callable[..., object], *args: object) -> None:
        self.world.clock.after(delay, self._unless_quiet, action, args)

    def _unless_quiet(self, action: Callable[..., object], args: tuple[object, ...]) -> None:
        if not self.quiet:
            self.disturbed_at = self.world.clock.now
            action(*args)

    def _rounds(self, dice: random.Random, least: float, most: float) -> float:
        return dice.uniform(least, most) * self.world.scenario.round_s

    # Who may be struck.

    def _alive(self) -> list["Peer"]:
        return [peer for peer in self.world.peers if peer.alive]

    def may_lose(self, victims: list["Peer"]) -> bool:
        """Whether the run can go on if these and their disks never come back."""
        victim_ids, best_round = {peer.id for peer in victims}, self.world.watch.best_round
        left = [
            p for p in self.world.peers if p.id not in victim_ids and p.started and not (p.gone or p.left or p.hostile)]
        if len(left) < 2 and len(self.world.peers) > 1:
            return False
        if best_round == 0:
            stay = {p.id for p in self.world.peers if p.id not in victim_ids and not p.gone and not p.hostile}
            return is_quorum(self.world.oracle.genesis.electorate, stay)
        return any(isinstance(link, Certificate) for p in left for link in p.disk.log)

    def _has_named_journal(self, peer: "Peer") -> bool:
        """Whether a certificate that is held names this disk's own journal for it (DESIGN rule 2)."""
        for link in peer.disk.log:
            if isinstance(link, Certificate):
                named = {entry.peer: entry.journal for entry in link.value.electorate}
                if named.get(peer.id) == peer.disk.journal:
                    return True
        return peer.id not in {voter for voter, _ in self.world.oracle.genesis.electorate}

    # Faults.

    def _come_back(self, peer: "Peer") -> None:
        if not peer.alive and not peer.gone:
            peer.start()

    def _crash(self, dice: random.Random) -> bool:
        alive = self._alive()
        if not alive:
            return False
        victim = dice.choice(alive)
        self._kill(victim, dice)
        self._later(self._rounds(dice, 0.05, 3.0), self._come_back, victim)
        return True

    def _kill(self, victim: "Peer", dice: random.Random) -> None:
        victim.kill(told=dice.random() < 0.6)
        if dice.random() < 0.3:
            self.world.watch.note(victim, "lost power: what was not synced is gone")
            victim.disk.blobs.power_cut()
            self.world.watch.accounts.damaged(victim.id, victim.disk.residuals.power_cut())

    def _restart(self, dice: random.Random) -> bool:
        alive = self._alive()
        victims = alive if dice.random() < 0.5 else [peer for peer in alive if dice.random() < 0.5]
        for victim in victims:
            self._kill(victim, dice)
            self._later(self._rounds(dice, 0.05, 1.5), self._come_back, victim)
        return bool(victims)

    def _gone(self, dice: random.Random) -> bool:
        alive = self._alive()
        if len(alive) < 2:
            return False
        share = dice.choice((1, 1, 1, len(alive) // 2, len(alive) - 2))
        victims = dice.sample(alive, max(1, share))
        if not self.may_lose(victims):
            return False
        for victim in victims:
            victim.kill(told=dice.random() < 0.6)
            victim.gone = True
        return True

    def _disk_loss(self, dice: random.Random) -> bool:
        alive = self._alive()
        if len(alive) < 2:
            return False
        victim = dice.choice(alive)
        if not self.may_lose([victim]):
            return False
        victim.kill(told=dice.random() < 0.6)
        if not self._has_named_journal(victim):
            victim.gone = True  # the key goes with the disk
            self.world.watch.note(victim, "loses its disk, and its key with it")
            return True
        generation = victim.disk.generation
        victim.disk = self.world.new_disk(generation)
        self.world.watch.accounts.lost(victim.id)
        self.world.watch.note(victim, "loses its disk")
        self._later(self._rounds(dice, 0.05, 2.0), self._come_back, victim)
        return True

    def _partition(self, dice: random.Random) -> bool:
        ids = [peer.id for peer in self.world.peers]
        if len(ids) < 2:
            return False
        dice.shuffle(ids)
        cuts = sorted(dice.sample(range(1, len(ids)), min(len(ids) - 1, dice.choice((1, 1, 2)))))
        groups = [ids[start:end] for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
        self.world.network.split(groups)
        names = self.world.watch.timeline.name
        self.world.watch.note(None, "partition:", " | ".join(",".join(map(names, group)) for group in groups))
        if dice.random() < 0.5:
            for one in self._alive():
                for other in self._alive():
                    if not self.world.network.connected(one.id, other.id):
                        self.world.clock.after(0.2, one.link_broke, one.life, other.id)
        self._later(self._rounds(dice, 0.3, 8.0), self._rejoin)
        return True

    def _rejoin(self) -> None:
        self.world.network.join()
        self.world.watch.note(None, "the network is whole")
        self.world.introduce()

    def _loss(self, dice: random.Random) -> bool:
        self.world.network.loss = dice.uniform(0.005, 0.15)
        self._later(self._rounds(dice, 0.5, 4.0), setattr, self.world.network, "loss", 0.0)
        return True

    def _reorder(self, dice: random.Random) -> bool:
        self.world.network.reorder = dice.uniform(0.02, 0.3)
        self._later(self._rounds(dice, 0.5, 4.0), setattr, self.world.network, "reorder", 0.0)
        return True

    def _corrupt(self, dice: random.Random) -> bool:
        self.world.network.corruption = dice.uniform(0.002, 0.03)
        self._later(self._rounds(dice, 0.5, 4.0), setattr, self.world.network, "corruption", 0.0)
        return True

    def _slow(self, dice: random.Random) -> bool:
        if self._rarely.random() < CANNOT_VOTE:
            return self._cannot_vote()
        victim, factor = dice.choice(self.world.peers), dice.uniform(3, 20)
        what = dice.choice(("step_s", "upload_bps"))
        before = getattr(victim, what)
        setattr(victim, what, before * factor if what == "step_s" else before / factor)
        self._later(self._rounds(dice, 0.5, 4.0), setattr, victim, what, before)
        return True

    def _cannot_vote(self) -> bool:
        """A peer that is too slow to hold what it would vouch for says so; some never vote again."""
        alive = [peer for peer in self._alive() if not peer.cannot_vote]
        if not alive:
            return False
        victim = self._rarely.choice(alive)
        victim.may_vote(able=False)
        self._later(self._rounds(self._rarely, 1.0, 8.0), victim.may_vote, True)
        return True

    def _leave(self, dice: random.Random) -> bool:
        alive = [peer for peer in self._alive() if peer.leaving_since is None]
        if len(alive) < 2:
            return False
        victim = dice.choice(alive)
        returns = dice.random() < 0.5
        if not returns and not self.may_lose([victim]):
            return False
        victim.leave()
        bound = self.world.clock.now + self._rounds(dice, 3.0, 4.0)
        lingers = self._rarely.random() < LINGERS
        self._later(0.5, self._depart, victim, victim.life, bound, lingers, dice if returns else None)
        return True

    def _depart(self, victim: "Peer", life: int, bound: float, lingers: bool, dice: random.Random | None) -> None:
        if not victim.alive or victim.life != life:
            return
        watch, membership = self.world.watch, self.world.membership
        departed, waits = victim.round.departed(victim.now), self.world.clock.now < bound
        if waits and (lingers or not departed):
            self._later(0.5, self._depart, victim, life, bound, lingers, dice)
            return
        watch.holds(membership.departs if departed else membership.stays, victim, peer=victim)
        victim.kill(told=True)
        victim.left = dice is None
        if dice is not None:
            self._later(self._rounds(dice, 0.5, 4.0), self._come_back, victim)

    def _torn(self, dice: random.Random) -> bool:
        alive = self._alive()
        if not alive:
            return False
        damage = dice.random() < 0.2
        victims = [peer for peer in alive if not damage or (self._has_named_journal(peer) and self.may_lose([peer]))]
        if not victims:
            return False
        victim = dice.choice(victims)

        def die(peer: "Peer") -> None:
            self._kill(peer, dice)
            if damage and self._has_named_journal(peer):
                if not peer.disk.damage_journal(self.world.new_journal(), dice):
                    self.world.watch.accuse("journal", "a flipped bit in its bytes is not seen", peer)
                self.world.watch.note(peer, "finds its journal damaged")
            self._later(self._rounds(dice, 0.05, 1.5), self._come_back, peer)

        victim.die_in_save = die
        return True

    def _equivocate(self, dice: random.Random) -> bool:
        """Arm a voter: when it votes next as one of a minority, it signs another value too, and tells everybody."""
        voters = [p for p in self._alive() if p.after_save is None and p.id in self._voters_of(p)]
        if voters:
            dice.choice(voters).after_save = self._vote_twice
        return False  # counted when it happens

    def _voters_of(self, peer: "Peer") -> dict[bytes, bytes]:
        place = self.world.oracle.places.get(peer.round.chain.tip.id)
        return {} if place is None else dict(place.electorate)

    def _vote_twice(self, victim: "Peer", save: effects.Save) -> bool:
        place, accepted = self.world.oracle.places.get(save.parent), save.acceptor.accepted
        if self.quiet or place is None or accepted is None or save.acceptor.left:
            return False
        journal, (ballot, value) = dict(place.electorate).get(victim.id), accepted
        if journal is None or is_quorum(place.electorate, [victim.id]):
            return False
        other = content_digest(value.id)
        unsigned = Vote(place.id, ballot, other, victim.id, journal, b"")
        vote = replace(unsigned, signature=victim.identity.sign("vote", unsigned.payload()))
        self.world.watch.note(victim, f"equivocates in ballot {ballot} under", place.id)
        victim.hostile = True
        self._note(Fault.EQUIVOCATE)
        for peer in self.world.reachable(victim):
            self.world.network.send(victim, peer, Voted(vote))
        return True
