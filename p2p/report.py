"""What the service shows of itself, as JSON-ready trees: `status`, `peers`, `rounds`. Reads, never changes anything."""

import time
from typing import TYPE_CHECKING, Any

from atoll.p2p import run_store
from atoll.p2p.round import electorate as electorates
from atoll.p2p.round import lastballot
from atoll.p2p.round.round import Round
from atoll.protocol.identity import peer_name

if TYPE_CHECKING:
    from atoll.p2p.service import PeerService

INVITE_ADDRESSES = 8


def status(service: "PeerService") -> dict[str, Any]:
    """The service's part of `atoll status --json`."""
    round_, now = service.round, time.monotonic()
    body: dict[str, Any] = {
        "state": "SYNC" if service.run_id.strip(b"\0") else "CONNECTING",
        "reason": _reason(service),
        "run_id": service.run_id.hex() if service.run_id.strip(b"\0") else None,
        "round": 0,
        "state_digest": None,
        "parent": None,
        "tokens": 0,
        "addresses": service.transport.addresses() if hasattr(service, "transport") else [],
        "up_bytes": service.links.up_bytes if hasattr(service, "links") else 0,
        "down_bytes": service.links.down_bytes if hasattr(service, "links") else 0,
        "warnings": warnings(service),
    }
    carrier = service.carrier
    if round_ is not None and carrier is not None:
        tip, decree = round_.chain.tip, round_.decree
        start = decree.exchange.start
        body |= {
            "state": "FAILED" if carrier.failure else str(round_.phase),
            "round": tip.round,
            "state_digest": tip.state.hex(),
            "parent": tip.id.hex(),
            "tokens": tip.tokens,
            "forks": tip.forks,
            "rounds_total": round_.rounds,
            "finished": round_.finished,
            "electorate": [peer_name(peer) for peer in electorates.peers(tip.electorate)],
            "members": [peer_name(peer) for peer in start.members] if start else [],
            "ballot": max(decree.ballot, 0),
            "leader": peer_name(round_.leader),
            "live_peers": len(round_.pace.alive(now)),
        }
    return body


def _reason(service: "PeerService") -> dict[str, str] | None:
    """Why nothing moves, if nothing moves."""
    carrier, round_ = service.carrier, service.round
    if carrier is None or round_ is None:
        problems = service.transport.problems() if hasattr(service, "transport") else []
        return {"code": problems[0]["code"], "message": problems[0]["message"]} if problems else None
    if carrier.failure is not None:
        return {"code": carrier.failure.code, "message": str(carrier.failure)}
    if carrier.disk_problem:
        return {"code": "disk_full", "message": carrier.disk_problem}
    return _standstill(round_, time.monotonic())


def _standstill(round_: Round, now: float) -> dict[str, str] | None:
    """What keeps the round from going on: bytes that nobody has, or voters that are away."""
    if round_.chain.lineages.frontier() and round_.wants.stranded(lambda peer: round_.has_bytes(peer, now)):
        message = "no peer that answers still keeps the results after this peer's round: join with a fresh home later."
        return {"code": "results_gone", "message": message}
    voters = round_.tip.voters
    there = [peer for peer in voters if peer == round_.me or round_.pace.awaited(peer, now)]
    if round_.finished or electorates.is_quorum(round_.tip.electorate, there):
        return None
    if round_.tip.round == 0 and not there:
        message = "none of the voters that the manifest names is reachable, and no round has been certified yet."
        return {"code": "no_genesis_voter", "message": message}
    due = lastballot.due_at(round_, now)
    alone = "" if due is None else f", or in a new lineage in about {max(0.0, due - now):.0f} s"
    message = f"{len(there)} of {len(voters)} voters are reachable, no quorum: rounds go on with more{alone}."
    return {"code": "no_quorum", "message": message}


def warnings(service: "PeerService") -> list[str]:
    """Named degradations that do not stop anything."""
    problems = service.transport.problems() if hasattr(service, "transport") else []
    notes = service.notes | (service.carrier.notes if service.carrier is not None else {})
    return [f"{p['code']}: {p['message']}" for p in problems] + [f"{code}: {text}" for code, text in notes.items()]


def peers(service: "PeerService") -> list[dict[str, Any]]:
    """Every other peer known, with what it said last."""
    round_, now, rows = service.round, time.monotonic(), []
    if round_ is None:
        return []
    voters = electorates.peers(round_.chain.tip.electorate)
    addresses = service.discovery.addresses if service.discovery else {}
    for peer in sorted({*round_.known, *addresses} - {round_.me}):
        presence = round_.pace.peers.get(peer)
        ready = presence.ready if presence else None
        rows.append(
            {
                "peer_id": peer_name(peer),
                "addresses": list(addresses.get(peer, ())),
                "voter": peer in voters,
                "live": round_.pace.present(peer, now),
                "state": ready.phase if ready else None,
                "round": ready.round if ready else None,
                "inner_step": ready.inner_step if ready else None,
                "trains": ready.trains if ready else None,
                "last_seen_s": round(now - presence.heard_at, 1) if presence else None,
            }
        )
    return rows


def rounds(service: "PeerService") -> list[dict[str, Any]]:
    """The rows of `atoll rounds --json`, oldest first."""
    return run_store.story(service.carrier.history) if service.carrier is not None else []


def live_addresses(service: "PeerService") -> list[str]:
    """Multiaddrs with /p2p/ID of this peer, then of others that are there."""
    own, others = service.transport.addresses()[:2], []
    if service.round is not None and service.discovery is not None:
        for peer in service.round.pace.alive(time.monotonic()):
            found = service.discovery.addresses.get(peer, ())
            others += [a if "/p2p/" in a else f"{a}/p2p/{peer_name(peer)}" for a in found[:1]]
    return [*own, *others][:INVITE_ADDRESSES]
