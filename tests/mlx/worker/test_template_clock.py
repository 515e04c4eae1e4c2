"""A chat template that names the day names that of the moment when its request was accepted."""

import time
from datetime import datetime
from threading import Thread

import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tool_parsers import json_tools
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from mlxsup.protocol.generation import Message
from mlxsup.worker.engine.codec import TextCodec

# The head of Llama 3.2's.
TEMPLATE = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- macro day() %}{{ strftime_now("%A") }}{% endmacro %}
{%- for message in messages %}
    {{- day() + ": " + message["content"] }}
{%- endfor %}
"""
MESSAGES = [Message(role="user", content="hi")]
PAST = datetime(2019, 3, 31, 12, 0).timestamp()
PROMPT_THEN = "<s>Cutting Knowledge Date: December 2023\nToday Date: 31 Mar 2019\n\nSunday: hi"


def make_tokenizer(template: str | dict[str, str]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({"<s>": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def codec() -> TextCodec:
    return TextCodec(TokenizerWrapper(make_tokenizer(TEMPLATE)))


def test_the_day_is_that_of_the_moment_that_was_asked_for(codec: TextCodec) -> None:
    assert codec.render_chat(MESSAGES, PAST) == PROMPT_THEN


def test_without_a_moment_it_is_today_also_after_another_one(codec: TextCodec) -> None:
    codec.render_chat(MESSAGES, PAST)
    days = {time.strftime("%d %b %Y")}
    prompt = codec.render_chat(MESSAGES)
    days.add(time.strftime("%d %b %Y"))

    assert any(f"Today Date: {day}\n" in prompt for day in days)


def test_a_template_of_its_own_for_tools_has_the_same_clock() -> None:
    templates = {"default": TEMPLATE, "tool_use": '{{ strftime_now("%d %b %Y") }} {{ tools | length }}'}
    wrapper = TokenizerWrapper(
        make_tokenizer(templates),
        tool_parser=json_tools.parse_tool_call,
        tool_call_start=json_tools.tool_call_start,
        tool_call_end=json_tools.tool_call_end,
    )
    tool = {"type": "function", "function": {"name": "f"}}

    assert TextCodec(wrapper).render_chat(MESSAGES, PAST, tools=[tool]) == "31 Mar 2019 1"
    assert TextCodec(wrapper).render_chat(MESSAGES, PAST) == PROMPT_THEN


def test_two_threads_each_have_their_own_day(codec: TextCodec) -> None:
    moments = [PAST + day * 86_400.0 for day in range(20)]
    prompts = dict.fromkeys(moments, "")

    def render(moment: float) -> None:
        prompts[moment] = codec.render_chat(MESSAGES, moment)

    threads = [Thread(target=render, args=(moment,)) for moment in moments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(
        datetime.fromtimestamp(moment).strftime("Date: %d %b") in prompt for moment, prompt in prompts.items()
    )
