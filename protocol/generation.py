"""Parameters of text generation, each with its bounds; the bounds stand here and nowhere else.

Defaults are not: an absent or null parameter takes what `[generation]` of the configuration says.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

STOP_STRINGS_MAX = 16
STOP_STRING_CHARS_MAX = 1024
SEED_MAX = 2**53 - 1
MAX_TOKENS_MAX = 1 << 24
MESSAGES_MAX = 4096
TOOLS_MAX = 128
NAME_CHARS_MAX = 128
LOGPROB_MIN = -9999.0

StopString = Annotated[str, Meta(min_length=1, max_length=STOP_STRING_CHARS_MAX)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
DeadlineMs = Annotated[int, Meta(ge=1, le=7 * 24 * 3600 * 1000)]
ClientName = Annotated[str, Meta(min_length=1, max_length=128)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARS_MAX)]
# Of a tool: templates and parsers put it between marks of their own. Not even a line's end may stand behind it.
ToolName = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+(?!\n)$")]


class Priority(StrEnum):
    """Tiers, the most urgent first."""

    INTERACTIVE = "interactive"
    HIGH = "high"
    NORMAL = "normal"
    BACKGROUND = "background"


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CANCELLED = "cancelled"


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str


class ImageUrl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: str


class ImagePart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="image_url"):
    image_url: ImageUrl


class PastFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`arguments` is the text of a JSON object."""

    name: Name
    arguments: str


class PastCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A tool call that an earlier answer made."""

    id: Name
    type: Literal["function"]
    function: PastFunction


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart | ImagePart], Meta(max_length=1024)] | None = None
    name: Annotated[str, Meta(max_length=128)] | None = None
    tool_calls: Annotated[list[PastCall], Meta(max_length=128)] | None = None
    tool_call_id: Annotated[str, Meta(max_length=128)] | None = None


class _Format(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    pass


class TextFormat(_Format, frozen=True, tag="text"):
    pass


class JsonObjectFormat(_Format, frozen=True, tag="json_object"):
    pass


class NamedSchema(msgspec.Struct, frozen=True, kw_only=True):
    name: Annotated[str, Meta(max_length=128)] = "schema"
    schema: dict[str, Any]


class JsonSchemaFormat(_Format, frozen=True, tag="json_schema"):
    json_schema: NamedSchema


class RegexFormat(_Format, frozen=True, tag="regex"):
    pattern: Annotated[str, Meta(min_length=1, max_length=65536)]


class ChoiceFormat(_Format, frozen=True, tag="choice"):
    choices: Annotated[list[str], Meta(min_length=1, max_length=4096)]


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | ChoiceFormat


class ToolFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """`parameters` is the JSON Schema of an object: what the function takes, by name."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    type: Literal["function"]
    function: ToolFunction


class NamedFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: ToolName


class NamedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """This tool is to be called."""

    type: Literal["function"]
    function: NamedFunction


class GenerationParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What `chat` and `generate` have in common."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS_MAX)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=5.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 20, description="0: off")] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    seed: Annotated[int, Meta(ge=-SEED_MAX, le=SEED_MAX)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=STOP_STRINGS_MAX)] | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10.0)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] | None = None
    logit_bias: (
        Annotated[dict[TokenId, Annotated[float, Meta(ge=-100.0, le=100.0)]], Meta(max_length=1024)] | None
    ) = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    adapter: (
        Annotated[Name, Meta(description="A LoRA adapter of the model, by its name in the configuration")]
        | None
    ) = None
    stream: bool = False
    priority: Priority | None = None
    deadline_ms: DeadlineMs | None = None
    client: ClientName | None = None
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    resume: bool = True

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatParams(GenerationParams, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MESSAGES_MAX)]


class GenerateParams(
    GenerationParams, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Exactly one of `prompt` and `prompt_tokens` is given."""

    prompt: str | None = None
    prompt_tokens: Annotated[list[TokenId], Meta(min_length=1)] | None = None


class TokenChance(msgspec.Struct, frozen=True, kw_only=True):
    """One token that could come next, its text (U+FFFD for bytes that are no character), and the natural logarithm of its
    probability, by the model alone: before temperature, penalties, biases and grammars. None is below `LOGPROB_MIN`.
    """

    token: TokenId
    text: str
    logprob: float


class TokenLogprob(TokenChance, frozen=True, kw_only=True):
    """The one that was chosen, and the likeliest ones in its place, as many as `logprobs` asks for."""

    top: list[TokenChance] = []


class CalledFunction(msgspec.Struct, frozen=True, kw_only=True):
    """`arguments` is a JSON text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """`id` is the same whichever worker said it."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """From the arrival of the call that is answered. One that joined a request with the same idempotency key has 0 for what
    was over when it came; `tokens_per_second` is that of the request.
    """

    queue_ms: float
    ttft_ms: float | None
    total_ms: float
    tokens_per_second: float


class ServedBy(msgspec.Struct, frozen=True, kw_only=True):
    """Which worker ended the request, and in how many further ones it was taken up again."""

    generation: int
    resumed: int = 0


class GenerationResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`reasoning` is what the model said to itself before the answer, `logprobs` has an entry for each token of all that it
    said. What there was none of, or what was not asked for, is left out.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    worker: ServedBy | None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None
    logprobs: Sequence[TokenLogprob] | None = None


class StreamDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`stream/delta`: what follows what this request was sent before. Joined, all of them are what its result has.

    `tokens` come with `logprobs`, where they were asked for. What is empty is left out, but for `text`.
    """

    id: int | str | None
    index: int
    text: str
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    tokens: list[TokenId] = []
    logprobs: Sequence[TokenLogprob] = []
