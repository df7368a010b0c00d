"""Settings are typed, bounded and known, or refused with path, value and remedy."""

import dataclasses
from typing import Any

import pytest

from atoll.protocol import settings
from atoll.protocol.errors import ManifestError
from atoll.protocol.settings import setting


@dataclasses.dataclass(frozen=True)
class Inner:
    count: int = setting(3, low=1, high=9, doc="how many")
    rate: float = setting(0.5, low=0, high=1, doc="how fast")
    word: str = setting("red", choices=("red", "green"), doc="which one")


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str = setting(doc="a name for people")
    inner: Inner = dataclasses.field(default_factory=Inner)
    flag: bool = setting(False, doc="yes or no")
    names: tuple[str, ...] = setting((), doc="several")
    numbers: tuple[int, ...] = setting((), low=2, doc="several numbers")
    limit: int | None = setting(None, low=1, doc="a bound, if any")
    data: bytes = setting(b"", doc="bytes")
    free: dict[str, Any] = setting({"a": 1}, doc="anything")


def test_defaults_fill_what_is_left_out_and_tree_is_the_inverse():
    value = settings.read(Outer, {"name": "x"})
    assert value == Outer("x")
    full = Outer("x", Inner(1, 1.0, "green"), True, ("a", "b"), (2, 3), 7, b"\0", {"b": [1, {"c": None}]})
    assert settings.read(Outer, settings.tree(full)) == full
    assert settings.tree(full)["names"] == ["a", "b"]


def test_default_tables_are_not_shared():
    first, second = Outer("x"), Outer("y")
    assert first.free == second.free
    assert first.free is not second.free


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "`name` is missing: a name for people"),
        ({"name": 5}, "`name` must be a text, not 5"),
        ({"name": "x", "flagg": True}, "unknown key `flagg`; did you mean `flag`"),
        ({"name": "x", "inner": {"raet": 1}}, "unknown key `inner.raet`; did you mean `rate`"),
        ({"name": "x", "inner": {"zzzz": 1}}, "unknown key `inner.zzzz`; known are count, rate, word"),
        ({"name": "x", "inner": 7}, "inner must be a table, not 7"),
        ({"name": "x", "inner": {"count": 0}}, "`inner.count` is 0, at least 1 is needed"),
        ({"name": "x", "inner": {"count": 10}}, "`inner.count` is 10, at most 9 is allowed"),
        ({"name": "x", "inner": {"count": 2.0}}, "`inner.count` must be a whole number, not 2.0"),
        ({"name": "x", "inner": {"count": True}}, "`inner.count` must be a whole number, not True"),
        ({"name": "x", "inner": {"rate": "fast"}}, "`inner.rate` must be a number, not 'fast'"),
        ({"name": "x", "inner": {"rate": float("nan")}}, "`inner.rate` must be a finite number"),
        ({"name": "x", "inner": {"rate": float("-inf")}}, "`inner.rate` must be a finite number"),
        ({"name": "x", "inner": {"rate": 10**400}}, "`inner.rate` must be a finite number"),
        ({"name": "x", "inner": {"rate": -(10**400)}}, "`inner.rate` must be a finite number"),
        ({"name": "x", "inner": {"rate": True}}, "`inner.rate` must be a number, not True"),
        ({"name": "x", "inner": {"word": "greem"}}, "`inner.word` is 'greem'; did you mean `green`"),
        ({"name": "x", "inner": {"word": "zzz"}}, "`inner.word` is 'zzz'; known are green, red"),
        ({"name": "x", "flag": 1}, "`flag` must be true or false, not 1"),
        ({"name": "x", "names": "abc"}, "`names` must be a list, not 'abc'"),
        ({"name": "x", "names": ["a", 1]}, r"`names\[1\]` must be a text, not 1"),
        ({"name": "x", "numbers": [2, 1]}, r"`numbers\[1\]` is 1, at least 2"),
        ({"name": "x", "limit": 0}, "`limit` is 0, at least 1"),
        ({"name": "x", "data": "text"}, "`data` must be bytes, not 'text'"),
        ({"name": "x", "free": []}, r"`free` must be a table, not \[\]"),
        ([], r"the document must be a table, not \[\]"),
        (None, "the document must be a table, not None"),
        ({5: 1, "name": "x"}, "unknown key `5`"),
    ],
)
def test_refusals_say_path_value_and_remedy(tree, message):
    with pytest.raises(ManifestError, match=message):
        settings.read(Outer, tree)


def test_whole_numbers_do_where_a_number_is_asked_for():
    value = settings.read(Inner, {"rate": 1})
    assert type(value.rate) is float


def test_none_stands_for_an_optional_setting():
    assert settings.read(Outer, {"name": "x", "limit": None}).limit is None
    assert settings.read(Outer, {"name": "x", "limit": 4}).limit == 4


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(ManifestError) as caught:
        settings.read(Inner, {"count": "x" * 100_000})
    assert len(str(caught.value)) < 200
