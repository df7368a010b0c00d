"""What every child process of the daemon does around its work: settings, signals, logs, and a last word on failure.

A failure that this software can explain becomes one marked line of output, which the supervisor reads, and the exit
code of the table; anything else a traceback in the log and `internal`. Called by `service_process` and `rank_process`.
"""

import json
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any

from atoll.node import exit_codes, lifeline, logs
from atoll.node.exit_codes import ExitCode
from atoll.protocol.errors import AtollError

log = logging.getLogger(__name__)


def run_child(name: str, work: Callable[[dict[str, Any]], None]) -> int:
    """Run `work(settings)` as the child `name`; the exit code."""
    logs.configure(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor decides what Ctrl-C means
    try:
        work(lifeline.attach())
    except Exception as raised:
        error = first_cause(raised)
        if isinstance(error, AtollError):
            return _fail(error.code, str(error), exit_codes.of(error))
        log.exception("this process met a defect")
        return _fail("internal", f"{type(error).__name__}: {error}", exit_codes.of(error))
    return ExitCode.OK


def first_cause(error: Exception) -> Exception:
    """The first error inside a task group's group of errors, or the error itself."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(code: str, message: str, exit_code: ExitCode) -> int:
    words = json.dumps({"code": code, "message": " ".join(message.split())})
    print(lifeline.FAILURE_MARK + words, file=sys.stderr, flush=True)
    return exit_code
