"""Reading untrusted trees: each function checks a shape or a bound before anything is built from it."""

from typing import Any

from atoll.protocol.digest import DIGEST_BYTES, Digest
from atoll.protocol.errors import MalformedError

MAX_COUNT = 1 << 62


def fields(tree: Any, number: int) -> tuple[Any, ...]:
    if not isinstance(tree, tuple) or len(tree) != number:
        raise MalformedError(f"expected {number} fields")
    return tree


def rows(tree: Any, width: int, limit: int) -> tuple[Any, ...]:
    if (
        not isinstance(tree, tuple)
        or len(tree) > limit
        or not all(isinstance(r, tuple) and len(r) == width for r in tree)
    ):
        raise MalformedError(f"expected at most {limit} rows of {width} fields")
    return tree


def digest(item: Any) -> Digest:
    if not isinstance(item, bytes) or len(item) != DIGEST_BYTES:
        raise MalformedError("expected a digest of 32 bytes")
    return item


def octets(item: Any, limit: int) -> bytes:
    if not isinstance(item, bytes) or len(item) > limit:
        raise MalformedError(f"expected at most {limit} bytes")
    return item


def exactly(item: Any, size: int) -> bytes:
    if not isinstance(item, bytes) or len(item) != size:
        raise MalformedError(f"expected {size} bytes")
    return item


def count(item: Any, limit: int = MAX_COUNT) -> int:
    if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item <= limit:
        raise MalformedError(f"expected a whole number from 0 to {limit}")
    return item
