"""The OpenRPC document of `rpc.discover`, generated from the method table and the message types."""

from functools import cache
from typing import Any

import msgspec

from mlxsup.protocol.errors import ERROR_CODES, ErrorData, ErrorKind
from mlxsup.protocol.methods import (
    METHODS,
    NOTIFICATIONS_FROM_CLIENT,
    NOTIFICATIONS_FROM_SERVER,
    PROTOCOL_VERSION,
    Method,
)
from mlxsup.protocol.params import positional_names

OPENRPC_VERSION = "1.3.2"
_REF = "#/components/schemas/{name}"


@cache
def document(server_version: str) -> dict[str, Any]:
    """An OpenRPC 1.3.2 document as plain JSON types; https://spec.open-rpc.org."""
    notifications = NOTIFICATIONS_FROM_CLIENT | NOTIFICATIONS_FROM_SERVER
    types: list[Any] = [method.params for method in METHODS.values()]
    types += [method.result for method in METHODS.values()]
    types += [*notifications.values(), ErrorData]
    references, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip(map(repr, types), references, strict=True))
    methods = [_method(method, by_type, components) for method in METHODS.values()]
    methods += [_notification(name, params, by_type, components) for name, params in notifications.items()]
    return {
        "openrpc": OPENRPC_VERSION,
        "info": {
            "title": "mlxsup",
            "version": server_version,
            "description": f"mlxsup client protocol, version {PROTOCOL_VERSION}: JSON-RPC 2.0 over stdio or a Unix socket.",
            "license": {"name": "Apache-2.0"},
        },
        "methods": methods,
        "components": {
            "schemas": components,
            "errors": {
                kind.value: {"code": code, "message": kind.value} for kind, code in ERROR_CODES.items()
            },
        },
    }


def _method(method: Method, by_type: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": method.summary,
        "paramStructure": "either",
        "params": _params(method.params, by_type, components),
        "result": {"name": "result", "schema": by_type[repr(method.result)]},
        "errors": [{"$ref": f"#/components/errors/{kind.value}"} for kind in _errors(method)],
    }


def _errors(method: Method) -> list[ErrorKind]:
    return [ErrorKind.INVALID_PARAMS, *dict.fromkeys(method.errors)]


def _notification(
    name: str, params: type[Any], by_type: dict[str, Any], components: dict[str, Any]
) -> dict[str, Any]:
    """OpenRPC: a method without a result is a notification."""
    sender = "client" if name in NOTIFICATIONS_FROM_CLIENT else "server"
    return {
        "name": name,
        "summary": f"Notification from the {sender}.",
        "paramStructure": "by-name",
        "params": _params(params, by_type, components),
    }


def _params(params: type[Any], by_type: dict[str, Any], components: dict[str, Any]) -> list[dict[str, Any]]:
    schema = components[by_type[repr(params)]["$ref"].rpartition("/")[2]]
    required = schema.get("required", ())
    return [
        {"name": name, "required": name in required, "schema": schema["properties"][name]}
        for name in positional_names(params)
    ]
