"""What is wrong with a client's parameters together, whatever the model; each alone has been checked by its type. Pure."""

from collections.abc import Sequence

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import GenerationParams, Message, NamedTool, TextFormat, Tool

# Of one answer: of the chosen tokens, and of the likeliest ones in their places. In JSON each takes about fifty bytes.
LOGPROBS_MAX = 1 << 18

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def check_tools(params: GenerationParams) -> None:
    """
    Raises:
        RpcError: INVALID_PARAMS for two tools of one name, and for a choice of what there is not, or what a format forbids.
    """
    tools = params.tools or []
    _check_names(tools)
    match params.tool_choice:
        case None | "none" | "auto":
            return
        case "required":
            path = "$.tool_choice"
            if not tools:
                raise _invalid(path, "needs `$.tools` to choose from")
        case NamedTool(function=function):
            path = "$.tool_choice.function.name"
            if all(tool.function.name != function.name for tool in tools):
                raise _invalid(path, "is none of `$.tools`")
    if not isinstance(params.response_format, TextFormat | None):
        raise _invalid(
            "$.tool_choice", "asks for a call and `$.response_format` for a text: ask for one of both"
        )


def check_messages(messages: Sequence[Message]) -> None:
    """
    Raises:
        RpcError: INVALID_PARAMS for calls that no assistant made, or whose arguments are not the text of a JSON object.
    """
    for index, message in enumerate(messages):
        path = f"$.messages[{index}]"
        if message.tool_calls and message.role != "assistant":
            raise _invalid(f"{path}.tool_calls", f"are an assistant's, but the role is `{message.role}`")
        if message.tool_call_id is not None and message.role != "tool":
            raise _invalid(f"{path}.tool_call_id", f"is a tool's, but the role is `{message.role}`")
        for number, call in enumerate(message.tool_calls or ()):
            if not _is_object(call.function.arguments):
                raise _invalid(
                    f"{path}.tool_calls[{number}].function.arguments", "is not the text of a JSON object"
                )


def check_logprobs(logprobs: int | None, max_tokens: int) -> None:
    """
    Raises:
        RpcError: LIMIT_EXCEEDED for more than an answer may have.
    """
    if logprobs is not None and max_tokens * (1 + logprobs) > LOGPROBS_MAX:
        raise RpcError(
            ErrorKind.LIMIT_EXCEEDED,
            f"an answer has at most {LOGPROBS_MAX} logprobs: with `$.logprobs` {logprobs} `$.max_tokens` is at most "
            f"{LOGPROBS_MAX // (1 + logprobs)}",
            path="$.logprobs",
        )


def _check_names(tools: Sequence[Tool]) -> None:
    seen = set()
    for index, tool in enumerate(tools):
        name = tool.function.name
        if name in seen:
            raise _invalid(f"$.tools[{index}].function.name", f"is the second one of the name `{name}`")
        seen.add(name)


def _is_object(text: str) -> bool:
    """Also where it is empty: some models write nothing where there are no arguments."""
    try:
        _decode_object(text or "{}")
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return False
    return True


def _invalid(path: str, what: str) -> RpcError:
    return RpcError(ErrorKind.INVALID_PARAMS, f"`{path}` {what}", path=path)
