"""What requests may ask for that not every engine can do: which engine does what, as data. Pure.

An engine refuses by name what its set here lacks; nothing that a request asks for is left out of its answer.
"""

from collections.abc import Callable

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import (
    ChoiceFormat,
    ImagePart,
    JsonObjectFormat,
    JsonSchemaFormat,
    RegexFormat,
    ResponseFormat,
)
from mlxsup.protocol.worker_link import Generate


class Feature(msgspec.Struct, frozen=True):
    """`path` is the parameter's, with `[]` for any place of a list; `find` gives it as a request asks for it, None: not."""

    name: str
    path: str
    find: Callable[[Generate], str | None]


def _format(name: str, kind: type[ResponseFormat]) -> Feature:
    path = "$.response_format"
    return Feature(name, path, lambda request: path if isinstance(request.format, kind) else None)


def _asked(name: str, path: str, is_asked: Callable[[Generate], bool]) -> Feature:
    return Feature(name, path, lambda request: path if is_asked(request) else None)


def _image(request: Generate) -> str | None:
    for index, message in enumerate(request.messages or ()):
        if isinstance(message.content, list):
            for number, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    return f"$.messages[{index}].content[{number}]"
    return None


IMAGES = Feature("images", "$.messages[].content[]", _image)
JSON_OBJECT = _format("any JSON object", JsonObjectFormat)
JSON_SCHEMA = _format("JSON by a schema", JsonSchemaFormat)
REGEX = _format("text by a regular expression", RegexFormat)
CHOICE = _format("one of several texts", ChoiceFormat)
TOOLS = _asked("tools", "$.tools", lambda request: bool(request.tools) and request.tool_choice != "none")
FORCED_TOOL = _asked(
    "a tool that has to be called",
    "$.tool_choice",
    lambda request: request.tool_choice not in (None, "none", "auto"),
)
LOGPROBS = _asked("logprobs", "$.logprobs", lambda request: request.logprobs is not None)
ADAPTER = _asked("LoRA adapters", "$.adapter", lambda request: request.adapter is not None)

FEATURES = (IMAGES, JSON_OBJECT, JSON_SCHEMA, REGEX, CHOICE, TOOLS, FORCED_TOOL, LOGPROBS, ADAPTER)

# By engine.
ABLE: dict[str, frozenset[Feature]] = {
    "text": frozenset({JSON_OBJECT, JSON_SCHEMA, REGEX, CHOICE, TOOLS, FORCED_TOOL, LOGPROBS, ADAPTER}),
}
# mlx-vlm's layers are not those that mlx-lm's adapters are made for.
ABLE["vision"] = ABLE["text"] - {ADAPTER} | {IMAGES}


def refuse_unsupported(request: Generate, able: frozenset[Feature]) -> None:
    """
    Raises:
        RpcError: UNSUPPORTED, with the path of the first feature that it asks for and is not among those.
    """
    for feature in FEATURES:
        path = None if feature in able else feature.find(request)
        if path is not None:
            raise RpcError(
                ErrorKind.UNSUPPORTED,
                f"`{path}`: this model's engine has no support for {feature.name}; leave it out",
                path=path,
            )
