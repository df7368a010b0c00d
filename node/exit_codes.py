"""One table: what a process exit code of `atoll` means, and which error leads to which.

`atoll --help` and the README print this table. Children of the daemon use it too, so that the supervisor can tell a
failure that trying again may mend from one that a person has to mend. Errors are found by their `code` first, then by
the names of their classes, so that this module imports no network and no model code.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    BAD_INPUT = 3
    HOME = 4
    ALREADY_RUNNING = 5
    NOT_RUNNING = 6
    DATA = 7
    NETWORK = 8
    NO_QUORUM = 9
    NOT_VALID = 10
    INTERNAL = 70
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "the job failed: the run, the demo or a child process did not end well",
    ExitCode.USAGE: "the command line makes no sense: unknown command, flag or value",
    ExitCode.BAD_INPUT: "a manifest, invite, draft, signature or config.toml that is not valid",
    ExitCode.HOME: "the home or its key cannot be used: read-only, full, owned by somebody else, damaged",
    ExitCode.ALREADY_RUNNING: "a daemon already runs on this home",
    ExitCode.NOT_RUNNING: "no daemon runs on this home",
    ExitCode.DATA: "the training data cannot be used: missing, empty, unreadable or too small",
    ExitCode.NETWORK: "the network cannot be used: port taken, no bootstrap peer reachable",
    ExitCode.NO_QUORUM: "what was asked for would leave no quorum",
    ExitCode.NOT_VALID: "`atoll inspect verify` found something in a training log or on a disk that does not hold",
    ExitCode.INTERNAL: "a defect of this program; the log has the details",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
}

_BY_CODE = {
    "usage": ExitCode.USAGE,
    "malformed": ExitCode.BAD_INPUT,
    "bad_signature": ExitCode.BAD_INPUT,
    "digest_mismatch": ExitCode.BAD_INPUT,
    "bad_manifest": ExitCode.BAD_INPUT,
    "bad_config": ExitCode.BAD_INPUT,
    "bad_invite": ExitCode.BAD_INPUT,
    "home_unusable": ExitCode.HOME,
    "bad_identity": ExitCode.HOME,
    "already_running": ExitCode.ALREADY_RUNNING,
    "not_running": ExitCode.NOT_RUNNING,
    "bad_data": ExitCode.DATA,
    "no_quorum": ExitCode.NO_QUORUM,
    "internal": ExitCode.INTERNAL,
}

_BY_CLASS = {"TransportError": ExitCode.NETWORK, "DataError": ExitCode.DATA}

PERMANENT = frozenset({ExitCode.BAD_INPUT, ExitCode.HOME, ExitCode.DATA, ExitCode.NO_QUORUM})
"""Ends of a child that starting it again cannot mend."""


def of(error: BaseException) -> ExitCode:
    """The exit code that an error leads to."""
    code = getattr(error, "code", None)
    named = getattr(error, "exit_code", None)
    if isinstance(named, int) and named in ExitCode.__members__.values():
        return ExitCode(named)
    if isinstance(code, str) and code in _BY_CODE:
        return _BY_CODE[code]
    for kind in type(error).__mro__:
        if kind.__name__ in _BY_CLASS:
            return _BY_CLASS[kind.__name__]
    return ExitCode.FAILED if isinstance(code, str) else ExitCode.INTERNAL


def of_code(code: str) -> ExitCode:
    """The exit code for an error that is known by its code alone."""
    return _BY_CODE.get(code, ExitCode.FAILED)


def of_network(code: str) -> ExitCode:
    """The exit code of a node that never got into its run because of this."""
    return _BY_CODE.get(code, ExitCode.NETWORK)


def table() -> str:
    """The table as `atoll --help` shows it."""
    return "\n".join(f"  {code.value:>3}  {meaning}" for code, meaning in MEANINGS.items())
