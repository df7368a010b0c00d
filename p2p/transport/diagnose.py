"""Why a peer cannot be reached, in one sentence that names phase, address, IP family and remedy.

libp2p says "failed to dial" for everything. So an address is tried with a name look-up and a plain TCP connection
first: the operating system knows the cause. That also spares p2pd, whose dial back-off (up to 5 minutes per address)
would keep a peer away long after the fault is lifted. What only libp2p can find out, another key at that address, is
read from p2pd's own words. Called by the hivemind transport before it dials.

    code               cause
    refused            a machine answers, nothing listens on that port
    timeout            nothing answers: packets are dropped
    unresolved         the name has no address
    no_route           this machine has no way there, e.g. IPv6 only and an IPv4 address
    wrong_peer_id      another peer listens there
    not_a_peer         something else than a peer listens there
    port_taken         (own address) another program listens on the port
    bad_listen_address (own address) not an address of this machine, or not allowed
    malformed_address  not a multiaddr
    unreachable        anything else, in p2pd's words
"""

import asyncio
import contextlib
import errno
import os
import re
import socket
import threading
from typing import Any

from atoll.p2p.transport.address import Address
from atoll.p2p.transport.port import TransportError
from atoll.protocol.identity import peer_name

RESOLVE_TIMEOUT_S = 4.0
CONNECT_TIMEOUT_S = 4.0
_MAX_TARGETS = 4
_NO_ROUTE = {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETDOWN}
_FAMILY = {"IPv4": socket.AF_INET, "IPv6": socket.AF_INET6, "IP": socket.AF_UNSPEC}
_MISMATCH = re.compile(r"peer id mismatch: expected \w+, but remote key matches (\w+)")


async def probe(address: Address, phase: str) -> None:
    """Return if something accepts TCP connections at `address` (QUIC addresses are resolved only).

    Raises TransportError with the cause within RESOLVE_TIMEOUT_S + CONNECT_TIMEOUT_S.
    """
    targets = await _resolve(address, phase)
    if address.transport != "tcp":
        return
    failures = await asyncio.gather(*(_try_tcp(address, target, phase) for target in targets[:_MAX_TARGETS]))
    if all(failures):
        raise next(failure for failure in failures if failure)


async def _try_tcp(address: Address, target: str, phase: str) -> TransportError | None:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(target, address.port)
    except (OSError, TimeoutError) as error:
        return explain_os_error(error, address, target, phase)
    writer.transport.abort()
    return None


def explain_os_error(error: OSError, address: Address, target: str, phase: str) -> TransportError:
    """The sentence for an operating system's refusal to connect to `target`, one of the IP addresses of `address`."""
    family = "IPv6" if ":" in target else "IPv4"
    where = f"{target} port {address.port}" + (f" ({address.host})" if address.is_name else "")
    how = f"{family}, {address.transport.upper()}"
    if isinstance(error, ConnectionRefusedError):
        return TransportError(
            f"{phase}: {where} refuses the connection ({how}): no peer listens there. "
            f"Start it, or correct the address {address.text}", "refused")
    other = "IPv4" if family == "IPv6" else "IPv6"
    if error.errno == errno.EHOSTUNREACH:  # a router, or the last network before it, says so
        return TransportError(
            f"{phase}: no {family} route leads to {where} ({how}: {os.strerror(error.errno)}): it is off, or this "
            f"machine's network does not reach it. Check both, or use an {other} address instead of {address.text}",
            "no_route")
    if error.errno in _NO_ROUTE:
        return TransportError(
            f"{phase}: this machine has no {family} route to {where} ({how}: {os.strerror(error.errno or 0)}). "
            f"Connect it to an {family} network, or use an {other} address instead of {address.text}", "no_route")
    if isinstance(error, TimeoutError):  # also what the kernel says after its own patience (ETIMEDOUT)
        return TransportError(
            f"{phase}: {where} does not answer within {CONNECT_TIMEOUT_S:.0f} s ({how}): packets are dropped. "
            f"Check that the machine is up and that firewalls let the port through: {address.text}", "timeout")
    return TransportError(
        f"{phase}: cannot connect to {where} ({how}): {error.strerror or error}. Check {address.text}",
        "unreachable")


def explain_daemon_error(text: str, address: Address | None, phase: str) -> TransportError:
    """The sentence for p2pd's own refusal to dial, after the operating system found nothing wrong."""
    mismatch = _MISMATCH.search(text)
    if mismatch and address and address.peer:
        return TransportError(
            f"{phase}: another peer listens at {address.where} ({address.how}): it is {mismatch[1]}, not "
            f"{peer_name(address.peer)}. Ask for a new invite, or correct the PeerID: {address.text}", "wrong_peer_id")
    if "dial to self" in text:
        named = address.text if address else "that"
        return TransportError(f"{phase}: {named} is this peer itself; name another one.", "self")
    if "failed to negotiate security protocol" in text and address:
        return TransportError(
            f"{phase}: whatever listens at {address.where} ({address.how}) is no peer: it does not speak libp2p. "
            f"Correct the address {address.text}", "not_a_peer")
    place = f"{address.text} ({address.how})" if address else "the peer"
    words = " ".join(text.removeprefix("Connect failed. msg=").split())
    return TransportError(f"{phase}: libp2p cannot reach {place}: {words[:300]}", "unreachable")


def check_can_listen(address: Address) -> int:
    """The port to listen at (a free one where `address` has port 0). Raises TransportError if that is not possible now.

    p2pd listens with SO_REUSEPORT and would share a port with another p2pd without a word, and without either getting
    all of its connections.
    """
    kind = socket.SOCK_STREAM if address.transport == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(_FAMILY[address.family], kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
            if address.family == "IPv6":
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind((address.host, address.port))
            if kind == socket.SOCK_STREAM:
                trial.listen(1)  # bind alone can succeed beside another socket that has SO_REUSEADDR
            return int(trial.getsockname()[1])
    except OSError as error:
        raise _cannot_listen(error, address) from error


def _cannot_listen(error: OSError, address: Address) -> TransportError:
    if error.errno == errno.EADDRINUSE:
        return TransportError(
            f"Listening: port {address.port} on {address.host} ({address.how}) is taken by another program. "
            f"Stop that program or choose another port than in {address.text}", "port_taken")
    reason = os.strerror(error.errno) if error.errno else str(error)
    denied = error.errno in (errno.EACCES, errno.EPERM)
    remedy = "choose a port above 1023" if denied else "use an address of this machine"
    return TransportError(
        f"Listening: {address.host} port {address.port} ({address.how}) is not possible: {reason}; {remedy} "
        f"instead of {address.text}", "bad_listen_address")


async def _resolve(address: Address, phase: str) -> list[str]:
    """The IP addresses behind an address. A look-up can hang beyond any patience, so it gets a daemon thread: a
    thread of the loop's executor would be waited for when the process ends.
    """
    if not address.is_name:
        return [address.host]
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(result: list[str], error: OSError | UnicodeError | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    def look_up() -> None:
        result: list[str] = []
        failure: OSError | UnicodeError | None = None
        try:
            family = _FAMILY[address.family]
            infos: list[Any] = socket.getaddrinfo(address.host, address.port, family, socket.SOCK_STREAM)
            result = list(dict.fromkeys(str(info[4][0]) for info in infos))
        except (OSError, UnicodeError) as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            return await answer
    except (OSError, UnicodeError) as error:
        reason = f"no answer within {RESOLVE_TIMEOUT_S:.0f} s" if isinstance(error, TimeoutError) else _words(error)
        raise TransportError(
            f"{phase}: the name {address.host} has no {address.family} address ({reason}). "
            f"Check its spelling and this machine's name server: {address.text}", "unresolved") from error


def _words(error: OSError | UnicodeError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
