"""Whether anything happens: a new commit within a bound while a quorum, or later any survivors, are connected.

Looks from outside, at intervals, at who is alive and who hears whom. What a bound is stands here in one place. Peers
are right to stand still only where DESIGN says so: before the first certificate, without a quorum of genesis voters.
"""

from typing import TYPE_CHECKING

from atoll.p2p.simulation.oracle import is_quorum

if TYPE_CHECKING:
    from atoll.p2p.simulation.peer import Peer
    from atoll.p2p.simulation.world import World

SLACK = 2.0  # lost messages, slow clocks and slow links


class Liveness:
    def __init__(self, world: "World") -> None:
        self.world = world
        self.settled = False
        self._settings = world.scenario.settings
        self._every_s = world.scenario.round_s / 4
        self._quiet_from: float | None = None

    def arm(self) -> None:
        self.world.clock.after(self._every_s, self._look)

    def quiet_from(self, now: float) -> None:
        """Everything is healed from now on."""
        self._quiet_from = now

    # Bounds.

    def round_bound_s(self, electorate: int) -> float:
        """A round with a quorum: the round itself, grace, and a turn of each leader, growing by half."""
        s = self._settings
        turns = sum(s.ballot_timeout_s * min(1.5**turn, 8.0) for turn in range(electorate + 1))
        return SLACK * (self.world.scenario.round_s * 2 + s.grace_s + 3 * s.gone_after_s + turns)

    def fork_bound_s(self, electorate: int) -> float:
        """A FORK without a quorum, of the last class of signers, with one survivor."""
        patience = self._settings.fork_timeout_s(electorate) * max(1, electorate)
        return self.round_bound_s(electorate) + SLACK * 3 * patience

    def end_bound_s(self) -> float:
        """From the moment when all is healed until the last round is done and one lineage has won."""
        honest, plan = self.world.honest(), self.world.scenario.plan
        size = max((len(p.round.chain.tip.electorate) for p in honest), default=1)
        left = plan.rounds - min((p.round.chain.tip.round for p in honest), default=0)
        return self.fork_bound_s(size) + (left + 4) * self.round_bound_s(min(size, 3))

    # Looking.

    def _look(self) -> None:
        world = self.world
        alive = world.honest()
        if self._quiet_from is not None and self._all_done(alive):
            self.settled = True
            return
        for group in self._groups(alive):
            self._judge(group)
        world.clock.after(self._every_s, self._look)

    def _all_done(self, alive: list["Peer"]) -> bool:
        tips = {peer.round.chain.tip.id for peer in alive}
        return len(tips) == 1 and all(peer.round.finished for peer in alive)

    def _groups(self, alive: list["Peer"]) -> list[list["Peer"]]:
        groups: list[list[Peer]] = []
        for peer in alive:
            home = next((g for g in groups if self.world.network.connected(g[0].id, peer.id)), None)
            if home is None:
                groups.append([peer])
            else:
                home.append(peer)
        return groups

    def _judge(self, group: list["Peer"]) -> None:
        """Accuse a connected group that has stood still for too long."""
        world = self.world
        ahead = max(group, key=lambda peer: peer.round.chain.tip.round)
        if all(peer.round.finished for peer in group):
            return
        tip = world.oracle.places.get(ahead.round.chain.tip.id)
        if tip is None:
            return
        journals = {peer.id: peer.disk.journal for peer in group}
        genesis = tip is world.oracle.genesis
        voters = [p for p, journal in tip.electorate if p in journals and (genesis or journals[p] == journal)]
        bound = self.round_bound_s(len(tip.electorate))
        if not is_quorum(tip.electorate, voters):
            if tip.base is world.oracle.genesis:
                return
            bound = self.fork_bound_s(len(tip.electorate))
        elif world.network.loss > 0.02 or world.network.reorder > 0.1:
            bound = self.fork_bound_s(len(tip.electorate))
        moved_at = max(world.injector.disturbed_at, *(world.watch.moved_at.get(peer.id, 0.0) for peer in group))
        idle = world.clock.now - moved_at
        if idle > bound:
            who = ",".join(peer.name for peer in group)
            phases = ",".join(sorted({str(peer.round.phase) for peer in group}))
            world.watch.accuse(
                "progress",
                f"{who} are connected and have done nothing for {idle:.0f} s (bound {bound:.0f} s) at round "
                f"{tip.round}; {len(voters)} of {len(tip.electorate)} voters are among them; phases {phases}")
