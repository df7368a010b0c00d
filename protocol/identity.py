"""One Ed25519 key is the libp2p PeerID on every stack and the signing key of everything a peer says.

The key file is libp2p's protobuf `PrivateKey` (type Ed25519, seed and public key), readable by Go and Python libp2p.
A PeerID here is its raw bytes: the identity multihash of the protobuf `PublicKey` (libp2p peer-ids spec).
Knows no network; `node` decides where the file lies.
"""

import functools
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from atoll.protocol.errors import IdentityError, MalformedError, SignatureError

PeerId = bytes
"""Raw PeerID, 38 bytes; peers are ordered by these bytes."""

PEER_ID_BYTES = 38
SIGNATURE_BYTES = 64
_KEY_PREFIX = b"\x08\x01\x12\x40"
_PEER_PREFIX = b"\x00\x24\x08\x01\x12\x20"
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


class Identity:
    """A private key with its PeerID. Never printed, never leaves the process."""

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.peer_id: PeerId = _PEER_PREFIX + self._public

    def __repr__(self) -> str:
        return f"Identity({peer_name(self.peer_id)})"

    @classmethod
    def generate(cls) -> "Identity":
        return cls(os.urandom(32))

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """Read a key file. Raises IdentityError if it is missing, open to others, or no Ed25519 key of libp2p's."""
        try:
            mode, data = path.stat().st_mode, path.read_bytes()
        except OSError as error:
            raise IdentityError(f"cannot read the key file {path}: {error.strerror}.") from error
        if mode & 0o077:
            raise IdentityError(f"{path} is readable by others (mode {mode & 0o777:o}): run `chmod 600 {path}`.")
        if len(data) != len(_KEY_PREFIX) + 64 or not data.startswith(_KEY_PREFIX):
            raise IdentityError(
                f"{path} is not an Ed25519 key file of libp2p's; restore it from a backup or move it away."
            )
        identity = cls(data[4:36])
        if identity._public != data[36:]:
            raise IdentityError(f"{path} is damaged: its public half does not belong to its private half.")
        return identity

    @classmethod
    def load_or_create(cls, path: Path) -> "Identity":
        """The key at `path`, made there (0600, durably) if there is none yet."""
        if path.exists():
            return cls.load(path)
        identity = cls.generate()
        seed = identity._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(_KEY_PREFIX + seed + identity._public)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(partial, path)  # whole or not at all, and the first of two starts wins
            except FileExistsError:
                return cls.load(path)
            except OSError:
                partial.rename(path)  # a file system without hard links
            finally:
                partial.unlink(missing_ok=True)
            _sync_folder(path.parent)
        except OSError as error:
            raise IdentityError(f"cannot write the key file {path}: {error.strerror}; choose another home.") from error
        return identity

    def sign(self, domain: str, payload: bytes) -> bytes:
        """64-byte signature (RFC 8032) over the domain and the payload; a domain separates one use from every other."""
        return self._key.sign(_domain(domain) + payload)


def verify(peer_id: PeerId, domain: str, payload: bytes, signature: bytes) -> None:
    """Raise SignatureError unless `signature` is `peer_id`'s over `payload` in `domain`."""
    try:
        _public_key(check_peer_id(peer_id)).verify(signature, _domain(domain) + payload)
    except InvalidSignature as error:
        raise SignatureError(f"a signature in the name of {peer_name(peer_id)} does not hold") from error


def check_peer_id(value: object) -> PeerId:
    """`value` as a PeerID, or MalformedError."""
    if not isinstance(value, bytes) or len(value) != PEER_ID_BYTES or not value.startswith(_PEER_PREFIX):
        raise MalformedError("not the PeerID of an Ed25519 key")
    return value


def peer_name(peer_id: PeerId) -> str:
    """Base58 text of a PeerID (`12D3Koo…`)."""
    number, text = int.from_bytes(peer_id, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = _ALPHABET[digit] + text
    return "1" * (len(peer_id) - len(peer_id.lstrip(b"\0"))) + text


def parse_peer(text: str) -> PeerId:
    """A PeerID from its base58 text, or MalformedError with the text in it."""
    number = 0
    for letter in text[:80]:
        digit = _ALPHABET.find(letter)
        if digit < 0:
            raise MalformedError(f"{text[:80]!r} is not a PeerID: it starts with 12D3Koo and has base58 letters only.")
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    try:
        return check_peer_id(b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big"))
    except MalformedError as error:
        raise MalformedError(f"{text[:80]!r} is not the PeerID of an Ed25519 key (12D3Koo…).") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _domain(domain: str) -> bytes:
    return b"atoll/1/" + domain.encode() + b"\0"


@functools.lru_cache(maxsize=4096)
def _public_key(peer_id: PeerId) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(peer_id[len(_PEER_PREFIX) :])
