"""One child process of the daemon: started with its settings on standard input, its output kept in a bounded log.

The child gets a process group of its own, so that a terminal's Ctrl-C reaches the supervisor alone and `kill` reaches
whatever the child started. Knows no restarts (`supervisor`) and not what the child does.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atoll.node import lifeline
from atoll.node.exit_codes import ExitCode
from atoll.node.logs import RotatingLog

_LINE_BYTES = 1 << 16
_OUTPUT_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Ended:
    """How a child ended. `code` and `message` are its own words where it had any, else its last line of output."""

    returncode: int
    code: str
    message: str

    @property
    def clean(self) -> bool:
        return self.returncode == 0

    @property
    def exit_code(self) -> ExitCode:
        known = {code.value for code in ExitCode}
        return ExitCode(self.returncode) if self.returncode in known else ExitCode.FAILED


class Child:
    """A running child. Made by `start`; `wait` must be awaited to the end."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: RotatingLog) -> None:
        self._process = process
        self._log = log
        self._last_line = ""
        self._failure: tuple[str, str] | None = None
        self.ended = asyncio.Event()

    @classmethod
    async def start(
        cls, command: Sequence[str], settings: Mapping[str, Any], log: RotatingLog,
        environment: Mapping[str, str] | None = None,
    ) -> "Child":
        """Raises OSError if the process cannot be made."""
        process = subprocess.Popen(  # noqa: ASYNC220  returns within milliseconds, and asyncio's own waits for pipes
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0,
            bufsize=0, env={**os.environ, **(environment or {})},
        )
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} process {process.pid} starts")
        child = cls(process, log)
        loop = asyncio.get_running_loop()
        threading.Thread(target=child._await_end, args=(loop,), name=f"wait-{process.pid}", daemon=True).start()
        # Settings larger than a pipe's buffer wait for the child to read them.
        await asyncio.to_thread(child._send, lifeline.frame({**settings, "parent_pid": os.getpid()}))
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        """Ask the child to end by itself."""
        self._send(lifeline.STOP)

    def kill(self) -> None:
        """End the child and everything in its process group at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def wait(self) -> Ended:
        """Wait for the end. Cancelled, it kills the child, with its group, and waits for that."""
        output = asyncio.create_task(self._drain_output())
        try:
            await self.ended.wait()
            self.kill()  # what it started and left behind
            await asyncio.wait([output], timeout=_OUTPUT_PATIENCE_S)
        finally:
            self.kill()
            output.cancel()
            await asyncio.gather(self.ended.wait(), output, return_exceptions=True)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        returncode = self._process.returncode or 0
        if self._failure is not None:
            return Ended(returncode, *self._failure)
        words = f"killed by {signal.Signals(-returncode).name}" if returncode < 0 else f"exit status {returncode}"
        return Ended(returncode, "crashed", f"{words}: {self._last_line}" if self._last_line else words)

    def _await_end(self, loop: asyncio.AbstractEventLoop) -> None:
        self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self.ended.set)

    def _send(self, data: bytes) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # the child is gone already; `wait` tells
                self._process.stdin.write(data)

    async def _drain_output(self) -> None:
        reader = asyncio.StreamReader(limit=_LINE_BYTES)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout)
        try:
            while True:
                try:
                    raw = await reader.readline()
                except ValueError:  # a line beyond the limit: the reader has dropped that part of it
                    self._log.write("… a line too long to keep")
                    continue
                if not raw:
                    return
                self._take(raw.decode(errors="replace").rstrip())
        finally:
            transport.close()

    def _take(self, line: str) -> None:
        if line.startswith(lifeline.FAILURE_MARK):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                words = json.loads(line.removeprefix(lifeline.FAILURE_MARK))
                self._failure = (str(words["code"]), str(words["message"]))
        if line:
            self._last_line = line[-400:]
        self._log.write(line)


def python_module(name: str) -> list[str]:
    """The command that runs a module with this interpreter, never one of that name from the current folder."""
    return [sys.executable, "-P", "-m", name]
