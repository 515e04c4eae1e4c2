"""Decoding of a method's parameters: every fault names the parameter, by its JSON path. Pure."""

import difflib
import re
from typing import Any, TypeVar

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError, shorten
from mlxsup.protocol.jsonrpc import UNDECODABLE

ParamsT = TypeVar("ParamsT")

_FIELD = re.compile(r"(?P<kind>missing required|unknown) field `(?P<name>[^`]*)`")
# How msgspec says that a key of an object is at fault, and not a value.
_KEY_OF = "key` in `"


def positional_names(params_type: type[Any]) -> tuple[str, ...]:
    """Names in the order in which an array gives their values: the required ones first."""
    fields = sorted(msgspec.structs.fields(params_type), key=lambda field: not field.required)
    return tuple(field.encode_name for field in fields)


def decode_params(params: bytes | None, params_type: type[ParamsT]) -> ParamsT:
    """The typed parameters in the JSON text `params`: an object, or an array as `positional_names` has it.

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
    names = positional_names(params_type)
    if len(values) > len(names):
        raise RpcError(
            ErrorKind.INVALID_PARAMS,
            f"cannot take {len(values)} positional params: there are {len(names)} ({', '.join(names) or 'none'})",
            path=f"$[{len(names)}]",
        )
    members = (b'"%b":%b' % (name.encode(), bytes(value)) for name, value in zip(names, values, strict=False))
    return b"{" + b",".join(members) + b"}"


def _invalid(text: str, params_type: type[Any]) -> RpcError:
    what, at, path = text.rpartition(" - at `")
    what, path = (what, path.removesuffix("`")) if at else (text, "$")
    if path.startswith(_KEY_OF):
        what, path = f"{what} as a key", path.removeprefix(_KEY_OF)
    if field := _FIELD.search(what):
        name, hint = shorten(field["name"]), ""
        if field["kind"] == "unknown":
            if path == "$":
                hint = _suggest(name, params_type)
            path = f"{path}.{name}"
            return RpcError(ErrorKind.INVALID_PARAMS, f"unknown param `{path}`{hint}", path=path)
        path = f"{path}.{name}"
        return RpcError(ErrorKind.INVALID_PARAMS, f"missing param `{path}`", path=path)
    return RpcError(ErrorKind.INVALID_PARAMS, f"cannot use `{path}`: {shorten(what)}", path=path)


def _suggest(name: str, params_type: type[Any]) -> str:
    known = positional_names(params_type)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known are {', '.join(known)}" if known else "; this method takes none"
