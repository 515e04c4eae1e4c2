import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.supervisor.models.safetensors_header import check_header, float32_bytes

SIZES = {"BOOL": 1, "U8": 1, "F16": 2, "BF16": 2, "F32": 4, "U32": 4, "I64": 8, "C64": 8}

Table = dict[str, dict[str, Any]]


@st.composite
def tables(draw: st.DrawFn) -> tuple[Table, int]:
    """A true header and the bytes of data that it describes."""
    names = draw(
        st.lists(
            st.text(min_size=1, max_size=8).filter("__metadata__".__ne__), min_size=1, max_size=6, unique=True
        )
    )
    table: Table = {}
    end = 0
    for name in names:
        dtype = draw(st.sampled_from(sorted(SIZES)))
        shape = draw(st.lists(st.integers(0, 5), max_size=3))
        size = SIZES[dtype]
        for extent in shape:
            size *= extent
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return table, end


def header(table: Table, **metadata: str) -> bytes:
    return json.dumps({"__metadata__": metadata, **table}).encode()


@given(tables(), st.randoms())
def test_a_true_header_passes_in_whatever_order_its_tensors_are_named(
    true: tuple[Table, int], random: Any
) -> None:
    table, data_bytes = true
    entries = list(table.items())
    random.shuffle(entries)
    check_header(header(dict(entries), format="mlx"), data_bytes)


@given(tables(), st.data())
def test_a_header_with_any_one_offset_moved_is_refused(true: tuple[Table, int], data: st.DataObject) -> None:
    table, data_bytes = true
    name = data.draw(st.sampled_from(sorted(table)))
    side = data.draw(st.sampled_from([0, 1]))
    by = data.draw(st.integers(-(2**70), 2**70).filter(bool))
    table[name]["data_offsets"][side] += by
    with pytest.raises(ValueError, match=r"tensor|truncated|behind"):
        check_header(header(table), data_bytes)


@given(tables(), st.integers(1, 100))
def test_a_file_with_less_or_more_data_than_described_is_refused(true: tuple[Table, int], by: int) -> None:
    table, data_bytes = true
    with pytest.raises(ValueError, match="bytes behind its last tensor"):
        check_header(header(table), data_bytes + by)
    if data_bytes:
        with pytest.raises(ValueError, match="it is truncated"):
            check_header(header(table), data_bytes - 1)


@given(st.binary(max_size=200))
def test_what_is_no_table_is_refused(junk: bytes) -> None:
    with pytest.raises(ValueError, match=r"isn't a table|no tensors"):
        check_header(junk, 0)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}, "unknown type 'F33'"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, "another size"),
        ({"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 8]}, "another size"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "isn't a table"),
        ({"dtype": "F32", "shape": [1] * 17, "data_offsets": [0, 4]}, "isn't a table"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 16]}, "isn't a table"),
        ({"dtype": "F32", "shape": [2]}, "isn't a table"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "overlaps"),
        (7, "isn't a table"),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(entry: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_header(header({"t": entry}), 8)


def test_overlapping_tensors_are_refused() -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    with pytest.raises(ValueError, match="overlaps"):
        check_header(header({"a": entry, "b": entry}), 8)


def test_a_deeply_nested_header_is_refused_without_harm() -> None:
    with pytest.raises(ValueError, match="isn't a table"):
        check_header(b'{"a":' + b"[" * 100_000, 8)


def test_expanded_a_value_takes_four_bytes_and_a_quantized_tensor_has_as_many_as_its_scales_stand_for() -> (
    None
):
    table = {
        "norm.weight": {"dtype": "F16", "shape": [64], "data_offsets": [0, 128]},
        # 8 rows of 64 values in 4 bits, and a scale and a bias for every 32 of them.
        "up.weight": {"dtype": "U32", "shape": [8, 8], "data_offsets": [128, 384]},
        "up.scales": {"dtype": "F16", "shape": [8, 2], "data_offsets": [384, 416]},
        "up.biases": {"dtype": "F16", "shape": [8, 2], "data_offsets": [416, 448]},
    }
    check_header(header(table), 448)
    assert float32_bytes(header(table), 32) == 4 * (64 + 8 * 64)
