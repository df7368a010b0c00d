"""Parts cover the vector exactly once, in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.protocol.layout import Layout


@given(numel=st.integers(1, 5000), part_elements=st.integers(1, 6000))
def test_parts_cover_every_element_once_and_in_order(numel, part_elements):
    layout = Layout(numel, part_elements)
    slices = list(layout)
    assert len(slices) == layout.parts
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(numel))
    sizes = [layout.size(part) for part in range(layout.parts)]
    assert sum(sizes) == numel
    assert all(size == part_elements for size in sizes[:-1])
    assert 1 <= sizes[-1] <= part_elements


def test_the_largest_vector_that_a_manifest_allows_costs_no_memory():
    layout = Layout(1 << 44, 65_536)
    assert layout.parts == 1 << 28
    assert layout.bounds(layout.parts - 1) == slice((1 << 44) - 65_536, 1 << 44)


@pytest.mark.parametrize("part", [-1, 4, 1 << 40])
def test_a_part_that_does_not_exist_is_an_index_error(part):
    with pytest.raises(IndexError, match="of 4"):
        Layout(1000, 256).bounds(part)


@pytest.mark.parametrize(("numel", "part_elements"), [(0, 1), (1, 0), (-1, 5)])
def test_a_layout_without_elements_is_refused(numel, part_elements):
    with pytest.raises(ValueError, match="needs elements"):
        Layout(numel, part_elements)
