"""The last questions to a world that has been quiet: one tip, the right one, and every log replays to its state."""

from typing import TYPE_CHECKING

from atoll.p2p.round import electorate as electorates
from atoll.p2p.round.chain import Chain
from atoll.protocol.certificate import Certificate
from atoll.protocol.errors import AtollError

if TYPE_CHECKING:
    from atoll.p2p.simulation.peer import Peer
    from atoll.p2p.simulation.world import World

REPLAYED = 3  # about so many peers replay their log; the others have the same one


def check_end(world: "World") -> None:
    alive = world.honest()
    _check_one_tip(world, alive)
    for peer in alive:
        _check_choice(world, peer)
        world.watch.holds(world.watch.accounts.check, peer, peer=peer)
    for peer in alive[:: max(1, len(alive) // REPLAYED)]:
        _check_replay(world, peer)


def _check_one_tip(world: "World", alive: list["Peer"]) -> None:
    tips: dict[bytes, list[str]] = {}
    for peer in alive:
        tips.setdefault(peer.round.chain.tip.id, []).append(peer.name)
    if len(tips) > 1 or not all(peer.round.finished for peer in alive):
        shown = "; ".join(
            f"{','.join(names)} at round {world.oracle.places[tip].round} ({tip.hex()[:8]})"
            for tip, names in sorted(tips.items(), key=lambda item: item[1]) if tip in world.oracle.places
        )
        world.watch.accuse("one tip after healing", f"long after everything is healed: {shown}")


def _check_choice(world: "World", peer: "Peer") -> None:
    """The peer follows the lineage that DESIGN's rule 7 picks from the certificates whose states it holds."""
    expected = world.oracle.best(world.watch.held[peer.id])
    if expected.id != peer.round.chain.tip.base:
        world.watch.accuse(
            "fork choice", f"follows {peer.round.chain.tip.base.hex()[:8]}, rule 7 picks {expected.id.hex()[:8]}", peer)


def _check_replay(world: "World", peer: "Peer") -> None:
    """Its log, from genesis on, gives its state again."""
    manifest = world.scenario.manifest
    chain = Chain(
        manifest.run_id, electorates.genesis(manifest.electorate), manifest.genesis.digest, manifest.layout,
        owner=manifest.owner, settings=world.scenario.settings,
    )
    workshop = peer.new_workshop()
    try:
        for link in peer.disk.log:
            if isinstance(link, Certificate):
                workshop.commit(link)
            chain.append(link)
    except (AtollError, KeyError, ValueError) as error:
        world.watch.accuse("replay", f"its log does not replay: {type(error).__name__} {error}", peer)
        return
    same = workshop.state.digest(workshop.layout) == peer.workshop.state.digest(peer.workshop.layout)
    if not same or chain.tip.id != peer.round.chain.tip.id:
        world.watch.accuse("replay", "its log leads to another state than it holds", peer)
