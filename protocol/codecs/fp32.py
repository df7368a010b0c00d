"""`fp32`: the vector's bytes as they are, 32 bits per parameter. The reference for every other codec.

Format: `numel` little-endian binary32 values, in order. Signs of zeros and subnormals are kept.

Error bound: decode(encode(x)) == x, bit for bit.
"""

import numpy as np

from atoll.protocol.codecs.bounds import check_magnitude, check_numel, check_size, check_vector, largest_bits
from atoll.protocol.codecs.port import Vector


class Fp32:
    name: str = "fp32"
    error_feedback: bool = False

    def encoded_size(self, numel: int) -> int:
        return 4 * check_numel(numel)

    def encode(self, values: Vector) -> bytes:
        check_magnitude(largest_bits(check_vector(values)), "the vector to encode")
        return values.astype("<f4", copy=False).tobytes()

    def decode(self, data: bytes | memoryview, numel: int) -> Vector:
        check_size(data, self.encoded_size(numel), self.name, numel)
        values = np.frombuffer(data, "<f4").astype(np.float32)
        check_magnitude(largest_bits(values), "an fp32 encoding")
        return values
