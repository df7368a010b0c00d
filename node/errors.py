"""What can go wrong around a node, as a branch of the protocol's tree of errors.

    AtollError
    ├── UsageError           a command that cannot mean anything; exit code 2
    ├── HomeError            a home that cannot be made, owned or written
    ├── ConfigError          config.toml, or a flag that would go there
    ├── InviteError          text that is neither a manifest file nor an invite
    ├── AlreadyRunningError  a second daemon on one home
    ├── NotRunningError      a command that needs a daemon, and there is none
    ├── IpcError             the other end of a local socket broke the rules or went away
    ├── DrainingError        the daemon is on its way out: nothing new is begun
    ├── ChildError           a child process that failed for good; carries the child's own code
    └── CallError            a request over a local socket that was answered with an error

Knows no exit codes; `atoll.node.exit_codes` has the table.
"""

from atoll.protocol.errors import AtollError


class UsageError(AtollError):
    code = "usage"


class HomeError(AtollError):
    code = "home_unusable"


class ConfigError(AtollError):
    code = "bad_config"


class InviteError(AtollError):
    code = "bad_invite"


class AlreadyRunningError(AtollError):
    code = "already_running"


class NotRunningError(AtollError):
    code = "not_running"


class IpcError(AtollError):
    code = "ipc"


class DrainingError(AtollError):
    code = "draining"


class ChildError(AtollError):
    """`code` is the child's, `exit_code` what `atoll up` ends with."""

    def __init__(self, message: str, code: str, exit_code: int) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code


class CallError(AtollError):
    """The answer to a request over a local socket was an error; `code` and text are the other end's."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code
