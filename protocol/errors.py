"""The tree of errors. A message is fact + value + remedy, one or two sentences, ready to be shown to a person.

    AtollError
    ├── MalformedError       bytes that do not parse, or parse to something out of bounds
    ├── SignatureError       a signature that does not hold, or a signer that is not the one required
    ├── MismatchError        content whose digest is not the one it was asked for under
    ├── MissingBytesError    certified results that are not, or no longer, on this disk
    ├── NonFiniteError       NaN, infinity or an absurd magnitude where arithmetic was about to happen
    ├── ManifestError        a draft or manifest that a person wrote, and can mend
    ├── IdentityError        a key file that is missing, foreign or damaged
    └── NondeterministicCpuError   this machine's arithmetic differs from the known answers

`code` is the stable, machine-readable name that CLI, API, metrics and logs share. The process exit code that goes
with each lives in `atoll.node.exit_codes`.
"""


class AtollError(Exception):
    """Anything this software can explain. `str(error)` is the sentence for the person, `code` the name for programs."""

    code = "error"


class MalformedError(AtollError):
    code = "malformed"


class SignatureError(AtollError):
    code = "bad_signature"


class MismatchError(AtollError):
    code = "digest_mismatch"


class MissingBytesError(AtollError):
    """`certificate` is the first one along a lineage whose results are gone."""

    code = "missing_bytes"

    def __init__(self, message: str, certificate: bytes) -> None:
        super().__init__(message)
        self.certificate = certificate


class NonFiniteError(AtollError):
    code = "non_finite"


class ManifestError(AtollError):
    code = "bad_manifest"


class IdentityError(AtollError):
    code = "bad_identity"


class NondeterministicCpuError(AtollError):
    code = "nondeterministic_cpu"
