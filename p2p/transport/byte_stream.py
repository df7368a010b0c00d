"""One libp2p stream over p2pd's Unix socket, with a deadline on everything and no way to go on after a miss.

p2pd forwards bytes between this socket and the network. A deadline that passes in the middle of a message leaves the
stream without a defined position, so it is aborted: the next call says `closed`. Made by the hivemind transport.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from atoll.p2p.transport.port import TransportError
from atoll.protocol.identity import PeerId, peer_name

_WRITE_CHUNK = 1 << 18
_READ_CHUNK = 1 << 16


class SocketStream:
    """A `Stream` (see `port`) over an asyncio reader and writer. `released` is called once, when it is closed."""

    def __init__(
        self, remote: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, released: Callable[[], Any],
    ) -> None:
        self.remote = remote
        self._reader, self._writer, self._released = reader, writer, released
        self._closed = False
        # `drain` then waits until the kernel has everything, so that `close` has nothing left to lose.
        writer.transport.set_write_buffer_limits(high=0)

    async def read_exactly(self, count: int, *, timeout_s: float) -> bytes:
        self._check_open()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._reader.readexactly(count)
        except asyncio.IncompleteReadError as error:
            raise self._gone(f"closed after {len(error.partial)} of {count} bytes") from error
        except TimeoutError as error:
            raise self._stalled(f"sent fewer than {count} bytes in {timeout_s:g} s") from error
        except OSError as error:
            raise self._gone(str(error)) from error

    async def write(self, data: bytes | memoryview, *, timeout_s: float) -> None:
        self._check_open()
        view = memoryview(data).cast("B")
        finished = False
        try:
            async with asyncio.timeout(timeout_s):
                for start in range(0, len(view), _WRITE_CHUNK):  # in pieces: asyncio copies what the kernel refuses
                    self._writer.write(view[start:start + _WRITE_CHUNK])
                    await self._writer.drain()
            finished = True
        except TimeoutError as error:
            raise self._stalled(f"took fewer than {len(view)} bytes in {timeout_s:g} s") from error
        except (OSError, RuntimeError) as error:  # RuntimeError: the transport under the writer is closed
            raise self._gone(str(error)) from error
        finally:
            if not finished:  # cancelled too: half a message is on its way
                self._abort()

    async def wait_eof(self, *, timeout_s: float) -> None:
        if self._closed:
            return
        try:
            async with asyncio.timeout(timeout_s):
                while await self._reader.read(_READ_CHUNK):
                    pass
        except TimeoutError as error:
            raise self._stalled(f"did not close within {timeout_s:g} s") from error
        except OSError:
            self._abort()  # reset is closed, too

    async def close(self) -> None:
        """Close both directions at once; what the remote has not acknowledged by closing first may be lost."""
        if not self._closed:
            self._closed = True
            self._writer.close()  # its buffer is empty: every write was drained or aborted
            self._released()

    def _abort(self) -> None:
        self._writer.transport.abort()
        if not self._closed:
            self._closed = True
            self._released()

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError(f"the stream to {peer_name(self.remote)} is closed.", "closed")

    def _gone(self, what: str) -> TransportError:
        self._abort()
        return TransportError(f"{peer_name(self.remote)} has closed the stream: {what or 'no reason given'}.", "closed")

    def _stalled(self, what: str) -> TransportError:
        self._abort()
        return TransportError(f"{peer_name(self.remote)} does not make progress: it {what}.", "stalled")
