"""Reading a tree of settings (TOML or canonical bytes) into frozen dataclasses: every key known, typed and in bounds.

A field's bounds stand in its metadata: `setting(default, low=…, high=…, choices=…, doc=…)`. Unknown keys are refused
with the nearest known one. Used by the manifest here and by the node's own configuration.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from atoll.protocol.errors import ManifestError

T = TypeVar("T")


def setting(
    default: Any = dataclasses.MISSING,
    *,
    doc: str,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A dataclass field with its documentation and its bounds (inclusive)."""
    metadata = {"doc": doc, "low": low, "high": high, "choices": choices}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def read(kind: type[T], tree: Any, where: str = "") -> T:
    """Build `kind` from a tree of plain values. Raises ManifestError with the dotted path, the value and the remedy."""
    if not isinstance(tree, Mapping):
        raise ManifestError(f"{where or 'the document'} must be a table, not {_shown(tree)}.")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in tree:
        if key not in fields:
            raise ManifestError(f"unknown key `{_path(where, str(key))}`{suggestion(str(key), fields)}.")
    values = {}
    for name, field in fields.items():
        path = _path(where, name)
        if name in tree:
            values[name] = _value(hints[name], tree[name], path, field.metadata)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ManifestError(f"`{path}` is missing: {field.metadata.get('doc', 'it has no default')}")
    return kind(**values)


def tree(value: Any) -> Any:
    """The plain tree behind a settings object, `read`'s inverse; tuples become lists."""
    if dataclasses.is_dataclass(value):
        return {field.name: tree(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [tree(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): tree(item) for key, item in value.items()}
    return value


def suggestion(word: str, known: typing.Iterable[str]) -> str:
    """`; did you mean `x`?` for the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f"; did you mean `{close[0]}`?" if close else f"; known are {', '.join(sorted(known))}"


def _value(hint: Any, value: Any, path: str, bounds: Mapping[str, Any]) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return read(typing.cast("type[Any]", hint), value, path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ManifestError(f"`{path}` must be a list, not {_shown(value)}.")
        return tuple(_value(typing.get_args(hint)[0], item, f"{path}[{i}]", bounds) for i, item in enumerate(value))
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise ManifestError(f"`{path}` must be a table, not {_shown(value)}.")
        return dict(value)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    return _scalar(hint, value, path, bounds)


def _scalar(hint: Any, value: Any, path: str, bounds: Mapping[str, Any]) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1023 else math.inf
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ManifestError(f"`{path}` must be {_kind(hint)}, not {_shown(value)}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ManifestError(f"`{path}` must be a finite number, not {value}.")
    low, high, choices = bounds.get("low"), bounds.get("high"), bounds.get("choices")
    if choices is not None and value not in choices:
        close = suggestion(value, choices) if isinstance(value, str) else f"; known are {choices}"
        raise ManifestError(f"`{path}` is {_shown(value)}{close}.")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if low is not None and value < low:
            raise ManifestError(f"`{path}` is {value}, at least {low:g} is needed.")
        if high is not None and value > high:
            raise ManifestError(f"`{path}` is {value}, at most {high:g} is allowed.")
    return value


def _kind(hint: Any) -> str:
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false", bytes: "bytes"}.get(
        hint, str(hint)
    )


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
