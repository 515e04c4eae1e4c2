from hypothesis import given
from hypothesis import strategies as st

from mlxsup.supervisor.scheduling.indexed_heap import IndexedHeap

KEYS = st.none() | st.integers(0, 50)


@given(st.lists(st.tuples(st.integers(0, 20), KEYS)))
def test_the_first_is_the_least_after_any_items_were_put_moved_and_taken_out(
    changes: list[tuple[int, int | None]],
) -> None:
    heap: IndexedHeap[int] = IndexedHeap()
    keys: dict[int, tuple[float, ...]] = {}
    for item, key in changes:
        if key is None:
            assert heap.discard(item) == (keys.pop(item, None) is not None)
        else:
            keys[item] = (key, item)
            heap.put(item, keys[item])
        assert len(heap) == len(keys)
        assert (item in heap) == (item in keys)
        assert heap.first() == min(((key, item) for item, key in keys.items()), default=None)


@given(st.lists(st.integers(), unique=True))
def test_taken_out_one_by_one_they_come_in_order(items: list[int]) -> None:
    heap: IndexedHeap[int] = IndexedHeap()
    for item in items:
        heap.put(item, (item,))
    taken = []
    while (row := heap.first()) is not None:
        taken.append(row[1])
        heap.discard(row[1])

    assert taken == sorted(items)
