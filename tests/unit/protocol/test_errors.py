import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.protocol.errors import (
    ERROR_CODES,
    Death,
    ErrorKind,
    ErrorObject,
    InvalidRequestError,
    ParseError,
    RpcError,
    shorten,
)
from mlxsup.protocol.jsonrpc import encode_error

CONTRACT = {
    "parse_error": -32700,
    "invalid_request": -32600,
    "method_not_found": -32601,
    "invalid_params": -32602,
    "internal": -32603,
    "model_not_found": -32001,
    "model_load_failed": -32002,
    "worker_died": -32003,
    "overloaded": -32004,
    "deadline_exceeded": -32005,
    "circuit_open": -32006,
    "quarantined": -32007,
    "limit_exceeded": -32008,
    "unsupported": -32009,
    "shutting_down": -32010,
}


def test_codes_are_those_that_clients_were_promised() -> None:
    assert {kind.value: code for kind, code in ERROR_CODES.items() if kind.value in CONTRACT} == CONTRACT


def test_every_kind_has_a_code_of_its_own() -> None:
    assert set(ERROR_CODES) == set(ErrorKind)
    assert len(set(ERROR_CODES.values())) == len(ERROR_CODES)


@pytest.mark.parametrize("kind", ErrorKind)
def test_only_what_may_pass_by_itself_is_retriable_unless_said_otherwise(kind: ErrorKind) -> None:
    passing = {"worker_died", "overloaded", "circuit_open", "shutting_down"}
    assert RpcError(kind, "x").data.retriable == (kind.value in passing)
    assert RpcError(kind, "x", retriable=True).data.retriable
    assert not RpcError(kind, "x", retriable=False).data.retriable


counts = st.none() | st.integers(0, 2**53)
texts = st.none() | st.text()
deaths = st.builds(
    Death, death_class=st.text(), phase=st.text(), exit_status=st.none() | st.integers(0, 255), signal=texts
)
errors = st.builds(
    RpcError,
    st.sampled_from(ErrorKind),
    st.text(),
    retriable=st.none() | st.booleans(),
    detail=texts,
    retry_after_ms=counts,
    path=texts,
    tokens_delivered=counts,
    death=st.none() | deaths,
)


@given(errors)
def test_an_error_arrives_as_it_was_raised(error: RpcError) -> None:
    sent = msgspec.json.encode(error.to_object())
    received = RpcError.from_object(msgspec.json.decode(sent, type=ErrorObject))
    assert (received.kind, received.code, received.message) == (error.kind, error.code, error.message)
    assert received.data == error.data
    assert str(received) == error.message


@given(errors)
def test_the_data_of_an_error_always_has_kind_and_retriable_and_no_nulls(error: RpcError) -> None:
    sent = msgspec.json.decode(msgspec.json.encode(error.to_object()))
    assert set(sent) == {"code", "message", "data"}
    assert sent["data"]["kind"] == error.kind.value
    assert sent["data"]["retriable"] is error.data.retriable
    assert None not in sent["data"].values()


def test_a_death_is_told_as_its_class() -> None:
    error = RpcError(
        ErrorKind.WORKER_DIED, "x", death=Death(death_class="killed", phase="ready", signal="SIGKILL")
    )
    sent = msgspec.json.decode(msgspec.json.encode(error.to_object()))
    assert sent["data"]["death"] == {"class": "killed", "phase": "ready", "signal": "SIGKILL"}


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(ParseError("why"), -32700, "Parse error"), (InvalidRequestError("why"), -32600, "Invalid Request")],
)
def test_where_the_standard_fixes_the_message_the_reason_is_the_detail(
    error: RpcError, code: int, message: str
) -> None:
    assert (error.code, error.message, error.data.detail) == (code, message, "why")


@given(st.text(max_size=1000))
def test_a_quotation_is_its_text_or_the_beginning_of_it(text: str) -> None:
    short = shorten(text)
    assert short == text or (len(short) == 201 and text.startswith(short[:-1]) and short[-1] == "…")


def test_a_name_that_is_no_text_is_quoted_in_a_form_that_can_be_sent() -> None:
    error = RpcError(ErrorKind.MODEL_LOAD_FAILED, "a file \udcff.safetensors is missing")

    assert error.message == "a file \\udcff.safetensors is missing"
    assert b"udcff.safetensors" in encode_error(1, error)
