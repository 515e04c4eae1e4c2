"""A stretch in a file: what is written is what is read, by other programs too, and whatever is another file is refused."""

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxsup.worker.engine.prefixes.file import BadFileError, decode, decode_header, encode, header_size
from tests.unit.prefixes.written import file_of, label_of, tensors_of, tokens_of

TEXT = "what it is about"


def test_what_was_written_is_what_is_read() -> None:
    label, tensors = decode(file_of(TEXT, 4))

    expected = label_of(TEXT, 4)
    assert label.tokens.tolist() == tokens_of(TEXT)[4:].tolist()
    assert (label.identity, label.before, label.start) == (expected.identity, expected.before, 4)
    assert (label.is_whole, label.state) == (False, None)
    assert [(tensor.dtype, tensor.shape, bytes(tensor.data)) for tensor in tensors] == [
        (tensor.dtype, tensor.shape, bytes(tensor.data)) for tensor in tensors_of(TEXT)
    ]


def test_other_programs_read_it_as_any_file_of_that_format() -> None:
    read = dict(safetensors.deserialize(file_of(TEXT)))  # type: ignore[no-untyped-call]

    first, second = tensors_of(TEXT)
    assert (read["0"]["dtype"], read["0"]["shape"], bytes(read["0"]["data"])) == (
        "F32",
        list(first.shape),
        bytes(first.data),
    )
    assert (read["1"]["dtype"], bytes(read["1"]["data"])) == ("BF16", bytes(second.data))


def test_its_header_says_what_it_is_and_how_long_the_file_has_to_be() -> None:
    content = file_of(TEXT)

    header = decode_header(content[: header_size(content[:8])])
    assert (header.size, header.label.tokens.tolist()) == (len(content), tokens_of(TEXT).tolist())


@settings(max_examples=300)
@given(at=st.integers(0, len(file_of(TEXT)) - 1), flip=st.integers(1, 255))
def test_a_single_byte_that_is_another_one_is_found_wherever_it_is(at: int, flip: int) -> None:
    content = bytearray(file_of(TEXT))
    content[at] ^= flip

    try:
        label, tensors = decode(content)
    except BadFileError:
        return
    # White space of the header and the case of a hexadecimal digit mean nothing.
    assert at < header_size(bytes(content[:8]))
    assert (label.before, label.tokens.tolist()) == (label_of(TEXT).before, tokens_of(TEXT).tolist())
    assert [bytes(tensor.data) for tensor in tensors] == [bytes(tensor.data) for tensor in tensors_of(TEXT)]


@given(length=st.integers(0, len(file_of(TEXT)) - 1))
def test_one_that_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(BadFileError):
        decode(file_of(TEXT)[:length])


@given(st.binary(max_size=200))
def test_whatever_else_there_is_is_refused(content: bytes) -> None:
    with pytest.raises(BadFileError):
        decode(content)


def test_one_that_goes_on_behind_its_end_is_refused() -> None:
    with pytest.raises(BadFileError, match="cut off"):
        decode(file_of(TEXT) + b"\0")


def test_a_safetensors_file_of_another_program_is_refused() -> None:
    other = safetensors.numpy.save({"a": np.zeros(2)}, {"format": "pt"})
    with pytest.raises(BadFileError, match="another format"):
        decode(other)


def test_a_tensor_that_is_not_as_long_as_its_shape_says_is_refused() -> None:
    content = file_of(TEXT).replace(b'"shape": [1, 16]', b'"shape": [1, 15]')
    with pytest.raises(BadFileError, match="gaps"):
        decode(content)


def test_pieces_are_those_of_the_caller_and_not_copied() -> None:
    tensors = tensors_of(TEXT)
    assert encode(label_of(TEXT), tensors)[2:] == [tensor.data for tensor in tensors]
