"""From a client's parameters to the order that a worker gets: defaults applied, the impossible refused. Pure."""

from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from mlxsup.config.schema import Generation
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import ChatParams, GenerateParams, GenerationParams, NamedTool, TextFormat
from mlxsup.protocol.worker_link import Generate, Sampling
from mlxsup.supervisor.generation.checks import check_logprobs, check_messages, check_tools

ValueT = TypeVar("ValueT")


def make_order(
    params: ChatParams | GenerateParams, defaults: Generation, random_seed: int, now_unix_s: float
) -> Generate:
    """The worker's order. `random_seed` serves a request that brings none; `now_unix_s` is the wall clock.

    Raises:
        RpcError: INVALID_PARAMS or LIMIT_EXCEEDED, with the parameter's path.
    """
    max_tokens = _or(params.max_tokens, defaults.max_tokens)
    check_tools(params)
    check_logprobs(params.logprobs, max_tokens)
    order = Generate(
        max_tokens=max_tokens,
        sampling=_sampling(params, defaults, random_seed),
        seeded=params.seed is not None,
        stop=params.stop_strings,
        format=None if isinstance(params.response_format, TextFormat) else params.response_format,
        tools=msgspec.to_builtins(params.tools or []),
        tool_choice=_tool_choice(params),
        logprobs=params.logprobs,
        adapter=params.adapter,
    )
    return _with_prompt(order, params, now_unix_s)


def _tool_choice(params: GenerationParams) -> str | dict[str, Any] | None:
    choice = params.tool_choice
    if isinstance(choice, NamedTool):
        named: dict[str, Any] = msgspec.to_builtins(choice)
        return named
    return choice


def _with_prompt(order: Generate, params: ChatParams | GenerateParams, now_unix_s: float) -> Generate:
    if isinstance(params, ChatParams):
        check_messages(params.messages)
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


def _or(value: ValueT | None, default: ValueT) -> ValueT:
    return default if value is None else value
