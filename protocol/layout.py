"""How a vector of `numel` elements is cut into parts. A part is sent, reduced, certified and hashed as one."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    numel: int
    part_elements: int

    def __post_init__(self) -> None:
        if self.numel < 1 or self.part_elements < 1:
            raise ValueError(f"a layout needs elements: numel={self.numel}, part_elements={self.part_elements}")

    @property
    def parts(self) -> int:
        return -(-self.numel // self.part_elements)

    def bounds(self, part: int) -> slice:
        """Elements of a part, as a slice into the vector. Raises IndexError for a part that does not exist."""
        if not 0 <= part < self.parts:
            raise IndexError(f"part {part} of {self.parts}")
        start = part * self.part_elements
        return slice(start, min(start + self.part_elements, self.numel))

    def size(self, part: int) -> int:
        """Number of elements in a part."""
        bounds = self.bounds(part)
        return int(bounds.stop - bounds.start)

    def __iter__(self) -> Iterator[slice]:
        return (self.bounds(part) for part in range(self.parts))
