"""Decoding of a method's parameters: every fault names the parameter, by its JSON path. Pure."""

import difflib
import re
from typing import Any, TypeVar

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.jsonrpc import UNDECODABLE

ParamsT = TypeVar("ParamsT")

_AT_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_FIELD = re.compile(r"(?P<kind>missing required|unknown) field `(?P<name>[^`]*)`")


def decode_params(params: bytes | None, params_type: type[ParamsT]) -> ParamsT:
    """The typed parameters in the JSON text `params`: an object, or an array in the fields' order.

    Raises:
        RpcError: INVALID_PARAMS with the `path` of the first bad parameter.
    """
    text = b"{}" if params is None else params
    if text[:1] == b"[":
        text = _by_name(text, params_type)
    try:
        return msgspec.json.decode(text, type=params_type)
    except UNDECODABLE as error:
        raise _invalid(str(error), params_type) from None


def _by_name(text: bytes, params_type: type[Any]) -> bytes:
    values = msgspec.json.decode(text, type=list[msgspec.Raw])
    names = params_type.__struct_encode_fields__
    if len(values) > len(names):
        raise RpcError(
            ErrorKind.INVALID_PARAMS,
            f"cannot take {len(values)} positional params: there are {len(names)} ({', '.join(names) or 'none'})",
            path=f"$[{len(names)}]",
        )
    members = (b'"%b":%b' % (name.encode(), bytes(value)) for name, value in zip(names, values, strict=False))
    return b"{" + b",".join(members) + b"}"


def _invalid(text: str, params_type: type[Any]) -> RpcError:
    match = _AT_PATH.match(text)
    assert match is not None
    what, path = match["what"], match["path"] or "$"
    if field := _FIELD.search(what):
        name, hint = field["name"], ""
        if field["kind"] == "unknown":
            if path == "$":
                hint = _suggest(name, params_type)
            path = f"{path}.{name}"
            return RpcError(ErrorKind.INVALID_PARAMS, f"unknown param `{path}`{hint}", path=path)
        path = f"{path}.{name}"
        return RpcError(ErrorKind.INVALID_PARAMS, f"missing param `{path}`", path=path)
    return RpcError(ErrorKind.INVALID_PARAMS, f"cannot use `{path}`: {what}", path=path)


def _suggest(name: str, params_type: type[Any]) -> str:
    known = params_type.__struct_encode_fields__
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known are {', '.join(known)}" if known else "; this method takes none"
