"""Which of the tools that a request brings its answer may call, and which it must. Pure."""

from typing import Any

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import TextFormat
from mlxsup.protocol.worker_link import Generate


class Choice(msgspec.Struct, frozen=True):
    """The model is told of the `shown` tools and may call the `allowed` ones. `required`: it says nothing but a call."""

    shown: list[dict[str, Any]]
    allowed: list[dict[str, Any]]
    required: bool = False


def chosen_tools(request: Generate) -> Choice:
    """
    Raises:
        RpcError: INVALID_PARAMS for a choice of what there is not, UNSUPPORTED for tools that no chat template tells of, or
            that a format forbids to call.
    """
    if request.tools and request.tool_choice != "none":
        _check_room(request)
    names = [tool["function"]["name"] for tool in request.tools]
    match request.tool_choice:
        case None | "auto":
            return Choice(request.tools, request.tools)
        case "none":
            return Choice([], [])
        case "required" if request.tools:
            return Choice(request.tools, request.tools, required=True)
        case {"type": "function", "function": {"name": str(name)}} if name in names:
            return Choice(request.tools, [request.tools[names.index(name)]], required=True)
    raise RpcError(
        ErrorKind.INVALID_PARAMS,
        "`$.tool_choice` is `auto`, `none`, or, where there are tools, `required` or the `function` of one of them",
        path="$.tool_choice",
    )


def _check_room(request: Generate) -> None:
    if request.messages is None:
        reason = "belong to `chat`: a prompt of your own says itself what the model may call"
    elif is_format_bound(request):
        reason = (
            "leave no room for `$.response_format`, which allows one text and no calls: ask for one of both"
        )
    else:
        return
    raise RpcError(ErrorKind.UNSUPPORTED, f"`$.tools` {reason}", path="$.tools")


def is_format_bound(request: Generate) -> bool:
    """Whether `response_format` says what the text of the answer is, from its first token on."""
    return not isinstance(request.format, TextFormat | None)


def has_room_to_think(request: Generate) -> bool:
    """Whether the answer may begin with anything: no grammar holds it."""
    return not is_format_bound(request) and not chosen_tools(request).required
