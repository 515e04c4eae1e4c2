"""What the benchmarks say to mlx-lm in a child process: one JSON text a line each way."""

import msgspec


class Start(msgspec.Struct, frozen=True, tag=True):
    """Load the model in `folder`, in float32 where a worker would expand it."""

    folder: str
    batch_sequences_max: int
    prefill_chunk_tokens: int


class Started(msgspec.Struct, frozen=True):
    blas_bridge: bool


class Texts(msgspec.Struct, frozen=True, tag=True):
    """Continue all prompts together, greedily."""

    prompts: list[str]
    max_tokens: int


class TextsDone(msgspec.Struct, frozen=True):
    """`seconds` is from the prompts as text to the answers as text; `tokens` are the answers'."""

    seconds: float
    tokens: int
    texts: list[str]


class Rates(msgspec.Struct, frozen=True, tag=True):
    """Prefill one prompt of `prompt_tokens`, then decode `streams` of them for `steps` steps."""

    prompt_tokens: int
    streams: int
    steps: int


class RatesDone(msgspec.Struct, frozen=True):
    prefill_tokens_per_s: float
    decode_tokens_per_s: float


class Goes(msgspec.Struct, frozen=True, tag=True):
    """Read `cached_tokens` of one prompt, and then go on with so many new ones up to the first token of an answer."""

    cached_tokens: int
    new_tokens: int


class GoesDone(msgspec.Struct, frozen=True):
    """`seconds` is for the new tokens alone."""

    seconds: float


Order = Start | Texts | Rates | Goes
