"""From a client's parameters to the order that a worker gets: defaults applied, the impossible refused. Pure."""

from typing import TypeVar

from msgspec.structs import replace

from mlxsup.config.schema import Generation
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import ChatParams, GenerateParams, GenerationParams, TextFormat
from mlxsup.protocol.worker_link import Generate, Sampling

ValueT = TypeVar("ValueT")


def make_order(
    params: ChatParams | GenerateParams, defaults: Generation, random_seed: int, now_unix_s: float
) -> Generate:
    """The worker's order. `random_seed` serves a request that brings none; `now_unix_s` is the wall clock.

    Raises:
        RpcError: UNSUPPORTED or INVALID_PARAMS, with the parameter's path.
    """
    _refuse_unsupported(params)
    order = Generate(
        max_tokens=_or(params.max_tokens, defaults.max_tokens),
        sampling=_sampling(params, defaults, random_seed),
        seeded=params.seed is not None,
        stop=params.stop_strings,
    )
    return _with_prompt(order, params, now_unix_s)


def _with_prompt(order: Generate, params: ChatParams | GenerateParams, now_unix_s: float) -> Generate:
    if isinstance(params, ChatParams):
        return replace(order, messages=params.messages, accepted_unix_s=now_unix_s)
    if (params.prompt is None) == (params.prompt_tokens is None):
        raise RpcError(
            ErrorKind.INVALID_PARAMS, "give exactly one of `$.prompt` and `$.prompt_tokens`", path="$.prompt"
        )
    return replace(order, prompt=params.prompt, prompt_tokens=params.prompt_tokens)


def _sampling(params: GenerationParams, defaults: Generation, random_seed: int) -> Sampling:
    return Sampling(
        temperature=_or(params.temperature, defaults.temperature),
        top_p=_or(params.top_p, defaults.top_p),
        top_k=_or(params.top_k, defaults.top_k),
        min_p=_or(params.min_p, defaults.min_p),
        repetition_penalty=_or(params.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=_or(params.presence_penalty, defaults.presence_penalty),
        frequency_penalty=_or(params.frequency_penalty, defaults.frequency_penalty),
        seed=_or(params.seed, random_seed),
        logit_bias=params.logit_bias or {},
    )


def _refuse_unsupported(params: GenerationParams) -> None:
    asked = {
        "logprobs": params.logprobs is not None,
        "response_format": not isinstance(params.response_format, TextFormat | None),
        "tools": bool(params.tools),
        "tool_choice": params.tool_choice not in (None, "none", "auto"),
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise RpcError(
                ErrorKind.UNSUPPORTED,
                f"`$.{name}` is not supported by this model's engine; leave it out",
                path=f"$.{name}",
            )


def _or(value: ValueT | None, default: ValueT) -> ValueT:
    return default if value is None else value
