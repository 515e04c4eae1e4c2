"""JSON-RPC 2.0 envelopes: what a frame says, before anyone looks at a method's parameters. Pure.

Requests never raise out of `parse_calls`: what can't be a call comes back as `Invalid`, ready to be
answered. Responses and notifications are encoded here too, so that the shape stands in one place.
"""

from typing import Any, Literal

import msgspec

from mlxsup.protocol.errors import ErrorObject, InvalidRequestError, ParseError, RpcError, shorten
from mlxsup.protocol.structure import TOO_DEEP, check_structure

ID_STRING_BYTES_MAX = 128
# Beyond it a JavaScript client can't tell two ids apart.
ID_INTEGER_MAX = 2**53 - 1

Id = int | str | None
_IdField = Id | msgspec.UnsetType


class Call(msgspec.Struct, frozen=True):
    """A request, or a notification where `id` is unset. `params` is the JSON text of the member."""

    method: str
    params: bytes | None
    id: _IdField

    @property
    def is_notification(self) -> bool:
        return self.id is msgspec.UNSET


class Invalid(msgspec.Struct, frozen=True):
    """Not a call; `error` is its answer, under `id` where one could be read."""

    id: Id
    error: RpcError


class Batch(msgspec.Struct, frozen=True):
    """Several calls in one frame; their answers go back in one frame, none for notifications."""

    calls: tuple[Call | Invalid, ...]


class Response(msgspec.Struct, frozen=True):
    """An answer as a client or the supervisor reads it; `result` is JSON text."""

    id: Id
    result: bytes | None
    error: ErrorObject | None


class _CallEnvelope(msgspec.Struct):
    jsonrpc: Literal["2.0"]
    method: str
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: _IdField = msgspec.UNSET


class _IdEnvelope(msgspec.Struct):
    id: Id = None


class _AnyEnvelope(msgspec.Struct):
    method: str | None = None
    params: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: _IdField = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: ErrorObject | None = None


_decode_call = msgspec.json.Decoder(_CallEnvelope).decode
_decode_id = msgspec.json.Decoder(_IdEnvelope).decode
_decode_any = msgspec.json.Decoder(_AnyEnvelope).decode
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_check_syntax = msgspec.json.Decoder(msgspec.Raw).decode


class JsonText:
    """What is JSON already, as part of a result or of params: `json` is sent as it is."""

    json: bytes


def _encode_text(value: Any) -> msgspec.Raw:
    if isinstance(value, JsonText):
        return msgspec.Raw(value.json)
    raise TypeError(f"no JSON is made of {type(value).__name__}")


_encode = msgspec.json.Encoder(enc_hook=_encode_text).encode

# msgspec reports bad UTF-8 and deep nesting outside its own hierarchy.
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def parse_calls(frame: bytes, batch_calls_max: int) -> Call | Invalid | Batch:
    """What a client's frame asks for."""
    try:
        _check_utf8(frame)
        check_structure(frame)
        if frame.lstrip()[:1] != b"[":
            return _parse_call(frame)
        return _parse_batch(frame, batch_calls_max)
    except UNDECODABLE as error:
        return Invalid(None, ParseError(_describe(error)))
    except RpcError as error:
        return Invalid(None, error)


def _parse_batch(frame: bytes, batch_calls_max: int) -> Batch:
    items = _decode_items(frame)
    if not items:
        raise InvalidRequestError("a batch needs at least one call")
    if len(items) > batch_calls_max:
        raise InvalidRequestError(f"a batch is limited to {batch_calls_max} calls")
    return Batch(tuple(_parse_call(bytes(item)) for item in items))


def _parse_call(text: bytes) -> Call | Invalid:
    try:
        envelope = _decode_call(text)
    except msgspec.ValidationError as error:
        # Validation stops at the first wrong type: the text behind it may not even be JSON.
        _check_syntax(text)
        return Invalid(_readable_id(text), InvalidRequestError(shorten(str(error))))
    id_error = _check_id(envelope.id)
    if id_error is not None:
        return Invalid(None, InvalidRequestError(id_error))
    params = None if envelope.params is msgspec.UNSET else bytes(envelope.params)
    if params is not None and params[:1] not in b"{[":
        return Invalid(
            _answer_id(envelope.id),
            InvalidRequestError("params must be an object or an array - at `$.params`"),
        )
    return Call(envelope.method, params, envelope.id)


def _check_id(value: _IdField) -> str | None:
    if isinstance(value, str) and len(value.encode()) > ID_STRING_BYTES_MAX:
        return f"a string id is limited to {ID_STRING_BYTES_MAX} bytes - at `$.id`"
    if isinstance(value, int) and abs(value) > ID_INTEGER_MAX:
        return f"an integer id is limited to ±{ID_INTEGER_MAX} - at `$.id`"
    return None


def _readable_id(text: bytes) -> Id:
    try:
        value = _decode_id(text).id
    except msgspec.ValidationError:
        return None
    return None if _check_id(value) else value


def _answer_id(value: _IdField) -> Id:
    return None if isinstance(value, msgspec.UnsetType) else value


def _check_utf8(frame: bytes) -> None:
    # msgspec skips members that it doesn't know without looking at their encoding.
    if not frame.isascii():
        frame.decode("utf-8")


def _describe(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte {error.start})"
    return shorten(str(error))


def parse_message(frame: bytes) -> Call | Response:
    """What the peer of a client, or of the supervisor, sent.

    Raises:
        ValueError: it is neither a call nor a response.
    """
    try:
        _check_utf8(frame)
        envelope = _decode_any(frame)
    except UNDECODABLE as error:
        raise ValueError(_describe(error)) from None
    if envelope.method is not None:
        params = None if envelope.params is msgspec.UNSET else bytes(envelope.params)
        return Call(envelope.method, params, envelope.id)
    if envelope.id is msgspec.UNSET or (envelope.result is msgspec.UNSET) == (envelope.error is None):
        raise ValueError("neither a call nor a response")
    result = None if envelope.result is msgspec.UNSET else bytes(envelope.result)
    return Response(_answer_id(envelope.id), result, envelope.error)


class _ResultEnvelope(msgspec.Struct):
    id: Id
    result: Any
    jsonrpc: str = "2.0"


class _ErrorEnvelope(msgspec.Struct):
    id: Id
    error: ErrorObject
    jsonrpc: str = "2.0"


class _RequestEnvelope(msgspec.Struct):
    id: Id
    method: str
    params: Any
    jsonrpc: str = "2.0"


class _NotificationEnvelope(msgspec.Struct):
    method: str
    params: Any
    jsonrpc: str = "2.0"


def encode_result(id: Id, result: Any) -> bytes:
    return _encode(_ResultEnvelope(id, result))


def encode_error(id: Id, error: RpcError) -> bytes:
    return _encode(_ErrorEnvelope(id, error.to_object()))


def encode_request(id: Id, method: str, params: Any) -> bytes:
    return _encode(_RequestEnvelope(id, method, params))


def encode_notification(method: str, params: Any) -> bytes:
    return _encode(_NotificationEnvelope(method, params))


def encode_batch(responses: list[bytes]) -> bytes:
    return b"[" + b",".join(responses) + b"]"
