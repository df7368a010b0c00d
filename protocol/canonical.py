"""Canonical bytes: one encoding per value, and a strict reader for bytes that a stranger sent.

msgpack restricted to nil, bool, int, bytes, str, float64 and arrays; maps only with string keys in ascending order.
The reader rejects trailing bytes, extension types, non-minimal encodings (by encoding again and comparing) and
anything larger than the caller's bound, before it builds a tree.
"""

from typing import Any

import msgpack

from atoll.protocol.errors import MalformedError

_MAX_DEPTH_ITEMS = 1 << 20


def encode(tree: Any) -> bytes:
    """The canonical bytes of `tree`. Raises TypeError for a type that has no canonical form."""
    packed: bytes = msgpack.packb(_ordered(tree), use_bin_type=True, strict_types=False)
    return packed


def decode(data: bytes | memoryview, *, limit: int) -> Any:
    """The tree behind canonical bytes of at most `limit` bytes; arrays come back as tuples.

    Raises MalformedError for anything else.
    """
    if len(data) > limit:
        raise MalformedError(f"{len(data)} bytes where at most {limit} are allowed")
    try:
        tree = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            use_list=False,
            max_str_len=limit,
            max_bin_len=limit,
            max_array_len=min(limit, _MAX_DEPTH_ITEMS),
            max_map_len=min(limit, _MAX_DEPTH_ITEMS),
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises half a dozen unrelated types, ValueError and its own among them
        raise MalformedError(f"not canonical msgpack: {type(error).__name__}") from error
    try:
        again = encode(tree)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MalformedError(f"not canonical msgpack: {type(error).__name__}") from error
    if again != bytes(data):
        raise MalformedError("msgpack that is not in canonical form")
    return tree


_PLAIN = frozenset({type(None), bool, int, float, str, bytes})


def _ordered(tree: Any) -> Any:
    if isinstance(tree, dict):
        if not all(isinstance(key, str) for key in tree):
            raise TypeError("canonical maps have string keys")
        return {key: _ordered(tree[key]) for key in sorted(tree)}
    if isinstance(tree, (list, tuple)):
        return [item if type(item) in _PLAIN else _ordered(item) for item in tree]  # most items need no look
    if tree is None or isinstance(tree, (bool, int, float, str, bytes)):
        return tree
    raise TypeError(f"{type(tree).__name__} has no canonical form")
