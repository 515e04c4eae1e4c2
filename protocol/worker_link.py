"""What supervisor and worker say to each other: JSON-RPC 2.0, one frame a line, internal to mlxsup.

The supervisor sends requests `load`, `generate`, `embed`, `tokenize`, `detokenize`, `selftest` and notifications `cancel`,
`tune`, `lease/grant`, `shutdown`. The worker answers, and sends notifications `hello` (once, first), `progress` (of a load),
`step` (text that sequences have gained), `heartbeat`, and, if it is told to by `tune`, `lease/ask` before it reads a chunk
of a prompt and `lease/done` behind it. Of one sequence every `step` comes before its answer.
"""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from mlxsup.protocol.generation import FinishReason, Message, ResponseFormat, TokenId, TokenLogprob, ToolCall
from mlxsup.protocol.self_test import Feature, SelfTestResult

# A worker may be confused or compromised: what it sends is bounded like what a client sends.
FRAME_BYTES_MAX = 16 * 1024 * 1024

LOAD = "load"
GENERATE = "generate"
EMBED = "embed"
TOKENIZE = "tokenize"
DETOKENIZE = "detokenize"
SELF_TEST = "selftest"
CANCEL = "cancel"
TUNE = "tune"
SHUTDOWN = "shutdown"
HELLO = "hello"
PROGRESS = "progress"
STEP = "step"
HEARTBEAT = "heartbeat"
LEASE_ASK = "lease/ask"
LEASE_GRANT = "lease/grant"
LEASE_DONE = "lease/done"

# Of 0 for whom somebody waits now, up to 3 for the background.
URGENCY_NORMAL = 2

# At the beginning of lines on stderr that tell of one request's failure, which the worker survived.
REQUEST_MARK = "mlxsup: request: "


class _Wire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Hello(_Wire, frozen=True):
    """Imports are done; `load` may come.

    `signal_key` stands in the lines on stderr that say where a signal came from, and in no other; empty: none will.
    """

    pid: int
    python: str
    mlx: str
    mlx_lm: str
    device: str
    orphan_watch: bool
    signal_key: str = ""


class Load(_Wire, frozen=True):
    """`model_path` is a folder that the supervisor has checked. Bounds are in tokens and bytes.

    `parked_bytes_max` is for the caches of requests that gave way, and go on, `prefix_bytes_max` for those of beginnings that
    others may share; on the disk they are in `prefix_folder`, None: nowhere. A chunk of a prompt takes about
    `prefill_target_s`, None: however long; an earlier worker read `prefill_tokens_per_s`. `kv_bits` None: caches are as the model computes them. With `lookup` texts that repeat
    themselves are guessed, with `draft_path` by that model. A grammar is compiled within `grammar_compile_s`, or refused.
    `adapters` are folders by name; so many as
    `adapters_bytes_max` allows are kept in memory beside those in use. With `self_test` it tests itself before it answers; what
    is `switched_off` by an earlier test is not used. A request may have `images_max` images, each of so many bytes and pixels.
    """

    model_path: str
    context_tokens_max: int | None
    batch_sequences_max: int
    prefill_chunk_tokens: int
    float32: bool | None
    wired_limit_bytes: int
    cache_limit_bytes: int | None
    heartbeat_interval_s: float
    parked_bytes_max: int = 0
    prefill_target_s: float | None = None
    prefill_tokens_per_s: float | None = None
    prefix_bytes_max: int = 0
    prefix_folder: str | None = None
    prefix_disk_bytes_max: int = 0
    prefix_disk_tokens_min: int = 0
    grammar_compile_s: float = 5.0
    adapters: dict[str, str] = {}
    kv_bits: Literal[4, 8] | None = None
    lookup: bool = True
    draft_path: str | None = None
    adapters_bytes_max: int = 0
    images_max: int = 0
    image_bytes_max: int = 0
    image_pixels_max: int = 0
    self_test: bool = False
    switched_off: list[Feature] = []


# A confused worker may say anything: no arithmetic with these overflows, and each can be printed.
Count = Annotated[int, Meta(ge=0, le=2**53)]
Amount = Annotated[float, Meta(ge=0.0, le=2.0**53)]


class Loaded(_Wire, frozen=True):
    """`kv_bytes_per_token` is what one more token of a sequence takes in the KV cache. `self_test` if it was ordered."""

    model_type: str
    context_tokens: Count
    weights_bytes: Count
    vocabulary_tokens: Count
    load_s: Amount
    kv_bytes_per_token: Count = 0
    self_test: SelfTestResult | None = None


class LoadProgress(_Wire, frozen=True):
    phase: str
    bytes_done: Count
    bytes_total: Count


class Sampling(_Wire, frozen=True):
    """Every value is set: the supervisor has applied the defaults. `seed` is any 64-bit number."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logit_bias: dict[int, float] = {}


class Generate(_Wire, frozen=True):
    """Exactly one of `messages`, `prompt`, `prompt_tokens` is set. `seeded`: the seed is the client's own.

    `delivered_tokens` are those of an earlier worker, `delivered_chars` the length of the text that they came with:
    the answer goes on behind them as if nothing had happened. `max_tokens` counts them too. `accepted_unix_s` is when the
    supervisor accepted `messages`: a chat template that names the day names that of then, in whichever worker.
    `urgency` is 0 for whom somebody waits now, up to 3 for the background: the less urgent gives way within the batch.
    `reads_first`: its client has less than its share, and a prompt that is one chunk is read before others as urgent go on.
    `format` None is plain text. `tools` and `tool_choice` are as the client said, `logprobs` as many of the likeliest tokens as
    are told of in each place, None: no logprobs. `adapter` is one of the model's own, None: none. Of what `delivered_tokens`
    made, so many characters of reasoning and so many tool calls were delivered, too.
    """

    max_tokens: int
    sampling: Sampling
    seeded: bool = False
    stop: tuple[str, ...] = ()
    messages: list[Message] | None = None
    prompt: str | None = None
    prompt_tokens: list[int] | None = None
    accepted_unix_s: float | None = None
    delivered_tokens: list[int] = []
    delivered_chars: int = 0
    urgency: Annotated[int, Meta(ge=0, le=3)] = URGENCY_NORMAL
    reads_first: bool = False
    format: ResponseFormat | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] | None = None
    logprobs: int | None = None
    adapter: str | None = None
    delivered_reasoning_chars: int = 0
    delivered_tool_calls: int = 0


class Embed(_Wire, frozen=True):
    """A vector for each of `texts`, of length 1 with `normalize`. `urgency` and `reads_first` are as those of a `Generate`,
    beside which it waits and is computed. `is_list` says how the client gave the texts.
    """

    texts: list[str]
    normalize: bool = True
    is_list: bool = True
    urgency: Annotated[int, Meta(ge=0, le=3)] = URGENCY_NORMAL
    reads_first: bool = False

    # It is answered with none.
    max_tokens: ClassVar[int] = 0

    def path(self, index: int) -> str:
        """Of a text, as the client knows it."""
        return f"$.input[{index}]" if self.is_list else "$.input"


Order = Generate | Embed


class Generated(_Wire, frozen=True):
    """`cached_tokens` of the prompt's were not computed for this request: what they gave was kept from before. `embeddings`
    answer an `Embed` that was not cancelled: of each text a JSON array of numbers.
    """

    finish_reason: FinishReason
    prompt_tokens: Count
    completion_tokens: Count
    cached_tokens: Count = 0
    embeddings: list[msgspec.Raw] = []


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What one sequence has gained: `tokens` new tokens, and what they made certain: text of the answer, text of the reasoning
    before it, tool calls. `logprobs` has an entry for each token, if they were asked for.
    """

    id: int
    text: str
    tokens: list[TokenId]
    reasoning: str = ""
    tool_calls: list[ToolCall] = []
    logprobs: list[TokenLogprob] = []


class Step(_Wire, frozen=True):
    deltas: list[Delta]


class Heartbeat(_Wire, frozen=True):
    """What the MLX thread last finished: `work` counts its units, `still_s` is the age of the last one.

    `prefill_tokens` are those of prompts in the step that is being computed, `prefill_tokens_per_s` the rate of the
    last step that had any. `preparing_s` is for how long one request has been prepared by now, 0 while none is.
    """

    phase: str
    work: Count
    still_s: Amount
    sequences: Count
    active_bytes: Count
    cache_bytes: Count
    peak_bytes: Count
    prefill_tokens: Count = 0
    prefill_tokens_per_s: Amount = 0.0
    preparing_s: Amount = 0.0


class Cancel(_Wire, frozen=True):
    """`goes_on`: it will be ordered again with what was delivered, and what is held back till then is not said."""

    id: int
    goes_on: bool = False


class Tune(_Wire, frozen=True):
    """From the next step on; what is None stays as it is.

    A turn is asked for before at least `lease_tokens_min` tokens of prompts are read at once, 0: for none. What is
    `switched_off` stays so.
    """

    batch_sequences_max: Annotated[int, Meta(ge=1)] | None = None
    prefill_chunk_tokens: Annotated[int, Meta(ge=1)] | None = None
    lease_tokens_min: Annotated[int, Meta(ge=0)] | None = None
    switched_off: list[Feature] = []


class LeaseAsk(_Wire, frozen=True):
    """So many tokens of prompts are next, the most urgent of them so urgent."""

    tokens: Count
    urgency: Annotated[int, Meta(ge=0, le=3)]


class LeaseTurn(_Wire, frozen=True):
    """One is granted, or it is over, or no longer wanted."""


class Shutdown(_Wire, frozen=True):
    """End within `grace_s`; until then the orphan watch holds still."""

    grace_s: Annotated[float, Meta(ge=0)]


class Tokenize(_Wire, frozen=True):
    text: str


class Tokenized(_Wire, frozen=True):
    tokens: list[int]


class Detokenize(_Wire, frozen=True):
    tokens: list[int]


class Detokenized(_Wire, frozen=True):
    text: str


class SelfTest(_Wire, frozen=True):
    """Answered with a `SelfTestResult`. Between its steps everything else goes on."""
