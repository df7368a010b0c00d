"""The codecs by the names that a manifest uses."""

from types import MappingProxyType

from atoll.protocol.codecs.fp16 import Fp16
from atoll.protocol.codecs.fp32 import Fp32
from atoll.protocol.codecs.int8 import Int8
from atoll.protocol.codecs.port import Codec
from atoll.protocol.codecs.top8 import Top8
from atoll.protocol.errors import MalformedError

CODECS: MappingProxyType[str, Codec] = MappingProxyType(
    {"fp32": Fp32(), "fp16": Fp16(), "int8": Int8(), "top8": Top8()}
)


def codec(name: str) -> Codec:
    """The codec of that name; MalformedError where there is none."""
    try:
        return CODECS[name]
    except KeyError as error:
        raise MalformedError(f"{name[:40]!r} is not a codec; known are {', '.join(CODECS)}.") from error
