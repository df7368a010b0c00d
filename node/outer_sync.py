"""The trainer's port to the network, over the p2p service's local socket. Rank 0 only; blocking, one trainer thread.

A thread of its own keeps the connection: it reads what the service tells and connects again when the service has been
restarted, so that `report` returns at once whatever happens and the inner loop goes on. What was lost with a service (a
contribution that it held, a wait) is handed over again to its successor. Knows neither the supervisor nor torch; made
by `rank_process`.
"""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from atoll.node import ipc, shared_vector
from atoll.node.errors import CallError, DrainingError, IpcError
from atoll.protocol.errors import AtollError
from atoll.trainer.outer_sync import Evaluation, Order, OuterSnapshot, Progress

_RETRY_S = 0.2
_CHECKED_ELEMENTS = 1 << 22

log = logging.getLogger(__name__)


class _LostError(Exception):
    """The connection ended before the answer came."""


@dataclass
class _Outstanding:
    """A contribution that a service has taken and no certificate has answered yet."""

    parent: bytes
    tokens: int
    steps: int
    descriptor: int
    instance: bytes


class SocketOuterSync:
    """`OuterSync` over a Unix socket. `close` when done; `request_stop` may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._news = threading.Condition()  # guards everything below
        self._connection: socket.socket | None = None
        self._socket: socket.socket | None = None  # the connection, once its greeting has come
        self._instance = b""
        self._parent: bytes | None = None
        self._frozen: bytes | None = None
        self._stopping = False
        self._answers: dict[int, ipc.Frame] = {}
        self._last_id = 0
        self._sending = threading.Lock()
        self._closed = threading.Event()
        # Touched by the trainer's thread alone:
        self._numel = 0
        self._vector: tuple[int, npt.NDArray[np.float32]] | None = None
        self._outstanding: _Outstanding | None = None
        self._thread: threading.Thread | None = None

    def open(self) -> "SocketOuterSync":
        """Begin to connect; returns at once."""
        self._thread = threading.Thread(target=self._keep_connected, name="outer-sync", daemon=True)
        self._thread.start()
        return self

    def request_stop(self) -> None:
        """The daemon drains: `report` says STOP and `wait_next` returns None from now on."""
        with self._news:
            self._stopping = True
            self._news.notify_all()

    def close(self) -> None:
        self._closed.set()
        self._disconnect()
        if self._thread is not None:
            self._thread.join()
        self._forget()
        if self._vector is not None:
            os.close(self._vector[0])
            self._vector = None

    # OuterSync

    def latest(self) -> OuterSnapshot:
        """As the port says; raises DrainingError if the daemon drains before there is a state."""
        snapshot = self._state("latest", {})
        if snapshot is None:
            raise DrainingError("the daemon is being stopped before there was a state to train from")
        return snapshot

    def report(self, progress: Progress) -> Order:
        self._send_now(ipc.Frame(event="progress", args={
            "parent": progress.parent, "inner_step": int(progress.inner_step), "inner_steps": int(progress.inner_steps),
            "loss": float(progress.loss), "tokens": int(progress.tokens), "tokens_per_s": float(progress.tokens_per_s),
            "skipped_steps": int(progress.skipped_steps), "epoch": int(progress.epoch),
            "notice": str(progress.notice)[:500],
        }))
        with self._news:
            if self._stopping:
                return Order.STOP
            if self._parent is not None and self._parent != progress.parent:
                return Order.REBASE
            return Order.FREEZE if self._frozen == progress.parent else Order.CONTINUE

    def vector(self) -> npt.NDArray[np.float32]:
        if not self._numel:
            self.latest()
        if self._vector is None:
            descriptor = shared_vector.create(self._numel)
            self._vector = (descriptor, shared_vector.attach(descriptor, self._numel, writable=True))
        return self._vector[1]

    def contribute(self, parent: bytes, tokens: int, steps: int, vector: npt.NDArray[np.float32]) -> None:
        if tokens < 1:
            raise ValueError(f"a contribution of {tokens} tokens: at least one is needed")
        for start in range(0, vector.size, _CHECKED_ELEMENTS):
            if not np.isfinite(vector[start:start + _CHECKED_ELEMENTS]).all():
                raise ValueError("the pseudo-gradient holds NaN or infinity: it is not sent")
        own = self.vector()
        if vector is not own:
            own[:] = vector
        descriptor, _ = self._vector or (-1, own)
        self._vector = None
        self._forget()
        self._outstanding = _Outstanding(parent, int(tokens), int(steps), descriptor, b"")
        while not self._hand_over(self._outstanding):
            if self._stop_requested():
                return

    def wait_next(self, parent: bytes) -> OuterSnapshot | None:
        return self._state("wait_next", {"parent": parent})

    def evaluated(self, evaluation: Evaluation) -> None:
        args = {
            "parent": evaluation.parent, "round": int(evaluation.round), "loss": float(evaluation.loss),
            "tokens": int(evaluation.tokens), "bytes": int(evaluation.bytes),
        }
        while not self._stop_requested():
            try:
                self._call("evaluated", args).result()
            except _LostError:
                continue
            return

    # Calls

    def _state(self, call: str, args: Mapping[str, Any]) -> OuterSnapshot | None:
        while not self._stop_requested():
            try:
                mine = self._outstanding if call == "wait_next" else None
                if mine is not None and mine.instance != self._await_service() and not self._hand_over(mine):
                    continue
                frame = self._call(call, args, instance=mine.instance if mine is not None else None)
            except _LostError:
                continue
            try:
                snapshot = self._snapshot(frame)
            except CallError as error:
                if error.code != "draining":
                    raise
                self._disconnect()  # another service will follow
                continue
            finally:
                frame.close_files()
            if self._outstanding is not None and snapshot.parent != self._outstanding.parent:
                self._forget()
            return snapshot
        return None

    def _snapshot(self, frame: ipc.Frame) -> OuterSnapshot:
        head = frame.result()
        try:
            numel = int(head["numel"])
            snapshot = OuterSnapshot(
                bytes(head["parent"]), int(head["round"]), int(head["tokens"]), bool(head["finished"]),
                shared_vector.attach(frame.files[0], numel),
            )
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise IpcError("the p2p service answered with something that is no state") from error
        if self._numel and numel != self._numel:
            raise IpcError(f"the outer state had {self._numel} values and now has {numel}")
        self._numel = numel
        return snapshot

    def _hand_over(self, mine: _Outstanding) -> bool:
        """Send a contribution; False if the connection ended before it was taken. Raises ValueError if refused."""
        args = {"parent": mine.parent, "tokens": mine.tokens, "steps": mine.steps}
        try:
            instance = self._await_service()
            frame = self._call("contribute", args, os.dup(mine.descriptor), instance)
        except _LostError:
            return False
        frame.close_files()
        try:
            frame.result()
        except CallError as error:
            if error.code in ("bad_value", "non_finite"):
                raise ValueError(str(error)) from error
            if error.code != "draining":
                raise
            self._disconnect()  # another service will follow
            return False
        mine.instance = instance
        return True

    def _await_service(self) -> bytes:
        """Which service is there, once there is one. Raises _LostError while draining."""
        with self._news:
            self._news.wait_for(lambda: self._socket is not None or self._stopping)
            if self._socket is None:
                raise _LostError
            return self._instance

    def _forget(self) -> None:
        if self._outstanding is not None:
            os.close(self._outstanding.descriptor)
            self._outstanding = None

    def _call(
        self, call: str, args: Mapping[str, Any], descriptor: int | None = None, instance: bytes | None = None
    ) -> ipc.Frame:
        """The answer, of this very `instance` if one is named; the descriptor is closed here.

        Blocks while there is no service. Raises _LostError if the service goes away or the daemon drains.
        """
        files = [] if descriptor is None else [descriptor]
        frame = ipc.Frame(call=call, args=dict(args), files=files)
        try:
            with self._news:
                self._news.wait_for(lambda: self._socket is not None or self._stopping)
                if self._socket is None or instance not in (None, self._instance):
                    raise _LostError
                used, self._last_id = self._socket, self._last_id + 1
                frame.request_id = request_id = self._last_id
            self._send(used, frame)
        finally:
            frame.close_files()
        with self._news:
            self._news.wait_for(lambda: request_id in self._answers or self._socket is not used or self._stopping)
            if request_id in self._answers:
                return self._answers.pop(request_id)
        raise _LostError

    def _stop_requested(self) -> bool:
        with self._news:
            return self._stopping

    # The connection

    def _send(self, used: socket.socket, frame: ipc.Frame) -> None:
        data = memoryview(ipc.pack(frame))
        try:
            with self._sending:
                sent = socket.send_fds(used, [data], frame.files) if frame.files else 0
                used.sendall(data[sent:])
        except OSError as error:
            raise _LostError from error

    def _send_now(self, frame: ipc.Frame) -> None:
        """Send without waiting; a service that reads slowly misses this one and gets the next."""
        with self._news:
            used = self._socket
        if used is None:
            return
        data = memoryview(ipc.pack(frame))
        try:
            with self._sending:
                sent = used.send(data, socket.MSG_DONTWAIT)
                if sent < len(data):  # a frame that was begun has to be finished
                    used.sendall(data[sent:])
        except BlockingIOError:
            log.warning("the p2p service is slow: progress was not sent")
        except OSError as error:
            log.info("progress was not sent: %s", error)

    def _keep_connected(self) -> None:
        while not self._closed.is_set():
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(str(self._path))
                with self._news:
                    self._connection = None if self._closed.is_set() else connection
                if self._connection is not None:
                    self._read(connection)
            except (OSError, AtollError) as error:
                log.info("no connection to the p2p service: %s", error)
            finally:
                with self._news:
                    self._socket = self._connection = None
                    self._news.notify_all()
                    connection.close()
            self._closed.wait(_RETRY_S)

    def _read(self, connection: socket.socket) -> None:
        reader = ipc.FrameReader()
        try:
            while True:
                data, files = ipc.receive(connection)
                if not data:
                    return
                for frame in reader.feed(data, files):
                    self._take(frame, connection)
        finally:
            reader.close()
            with self._news:
                for frame in self._answers.values():
                    frame.close_files()
                self._answers.clear()

    def _take(self, frame: ipc.Frame, connection: socket.socket) -> None:
        with self._news:
            if frame.answer_to is not None:
                self._answers[frame.answer_to] = frame
            elif frame.event == "hello":
                self._instance, self._socket = bytes(frame.args.get("instance") or b""), connection
                self._parent, self._frozen = frame.args.get("parent"), frame.args.get("frozen")
            elif frame.event == "outer":
                self._parent = frame.args.get("parent")
            elif frame.event == "freeze":
                self._frozen = frame.args.get("parent")
            self._news.notify_all()

    def _disconnect(self) -> None:
        with self._news:
            if self._connection is not None:
                with contextlib.suppress(OSError):  # the other end was quicker
                    self._connection.shutdown(socket.SHUT_RDWR)
            self._socket = None
