import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsup.worker.engine.outputs import split as split_module
from mlxsup.worker.engine.outputs.dialect import Dialect, Part
from mlxsup.worker.engine.outputs.split import CALL_CHARS_MAX, END_MARKERS_IN_STRINGS_MAX, SplitStream
from mlxsup.worker.engine.outputs.stream import Piece
from tests.unit.outputs.answers import ENDLESS, HEADED, QWEN, reader, said, split

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
# What answers are made of, whole and broken.
SHREDS = st.sampled_from(
    [
        "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool", "_call>", "[CALLS]", "[CA", "to=self|", "to=user|",
        "<eom>", "<call>", "</call>", '{"name": "f", "arguments": {}}', '{"name": "g", "arguments": {"s": "', '"}}', "\n", "a",
        '[{"name": "f"}]', '{"name": "nobody", "arguments": {}}', "{", " ",
    ]
)  # fmt: skip
ANSWERS = st.lists(SHREDS, max_size=14).map("".join)


@pytest.mark.parametrize("dialect", [QWEN, ENDLESS, HEADED], ids=["qwen", "endless", "headed"])
@pytest.mark.parametrize("has_tools", [True, False])
@given(answer=ANSWERS, data=st.data())
def test_how_an_answer_is_cut_does_not_change_what_it_is(
    dialect: Dialect, has_tools: bool, answer: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=8)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    whole = split([answer], dialect, has_tools=has_tools)

    assert split(pieces, dialect, has_tools=has_tools) == whole
    assert split(answer, dialect, has_tools=has_tools) == whole


@given(answer=ANSWERS, data=st.data())
def test_how_it_is_cut_does_not_matter_either_where_calls_get_too_long(
    answer: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=8)))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_module, "CALL_CHARS_MAX", 20)
        patch.setattr(split_module, "END_MARKERS_IN_STRINGS_MAX", 1)

        assert split(pieces) == split([answer]) == split(answer)


@given(ANSWERS)
def test_without_markers_nothing_is_lost(answer: str) -> None:
    plain = answer.replace("<", "").replace("[", "")

    assert split(plain, ENDLESS).text == plain


def test_reasoning_answer_and_calls_come_apart_without_their_markers() -> None:
    piece = split(f"<think>\nlet me see\n</think>\n\nI look.\n{CALL}\n{CALL}")

    assert (piece.reasoning, piece.text) == ("let me see\n", "I look.\n")
    assert said(piece) == [("f", {"a": 1})] * 2


def test_reasoning_that_the_prompt_has_begun_ends_where_the_answer_begins() -> None:
    piece = split("\nhm</think>\n\n42", first=Part.REASONING)

    assert piece == Piece("42", "hm")


def test_an_answer_that_begins_with_line_breaks_keeps_them() -> None:
    assert split("\n\n42").text == "\n\n42"


def test_a_call_is_given_as_soon_as_its_end_marker_is_whole_and_text_as_soon_as_it_begins_no_marker() -> None:
    stream = SplitStream(QWEN, reader(), Part.TEXT)

    assert stream.add("so <t") == Piece("so ")
    assert stream.add("here") == Piece("<there")
    assert stream.add(CALL[:-1]) == Piece()
    assert [call.function.name for call in stream.add(">").tool_calls] == ["f"]


def test_without_tools_a_call_is_text() -> None:
    assert split(CALL, has_tools=False) == Piece(CALL)


@pytest.mark.parametrize(
    "body",
    [
        "{broken", "", "[]", "null", "17", '"f"', '{"name": "nobody", "arguments": {}}', '{"name": ["f"]}',
        '{"name": "f", "arguments": 3}', '{"name": "f", "arguments": "{"}', '{"name": "f", "arguments": {"a": NaN}}',
        '[{"name": "f"}, {"name": "nobody"}]', "[" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_call_of_a_tool_stays_as_it_was_said(body: str) -> None:
    answer = f"a<tool_call>{body}</tool_call>b"
    piece = split(f"{answer}{CALL}")

    assert piece.text == answer
    assert said(piece) == [("f", {"a": 1})]


def test_what_is_no_call_stays_in_the_reasoning_where_it_began() -> None:
    piece = split("<think>I might <tool_call> it</tool_call>, or not</think>no")

    assert piece == Piece("no", "I might <tool_call> it</tool_call>, or not")


def test_a_call_ends_the_reasoning_and_its_late_end_marker_is_no_text() -> None:
    piece = split(f"<think>go{CALL}</think>\n\ndone")

    assert (piece.reasoning, piece.text) == ("go", "done")
    assert said(piece) == [("f", {"a": 1})]


def test_a_call_that_the_end_of_the_answer_cuts_off_is_text() -> None:
    for end in range(len("<tool_call>"), CALL.index("\n</tool_call>") - 1):
        assert split(CALL[:end]) == Piece(CALL[:end])


def test_a_call_that_only_lacks_its_end_marker_is_one() -> None:
    piece = split(CALL.removesuffix("</tool_call>"))

    assert piece.text == ""
    assert said(piece) == [("f", {"a": 1})]


def test_an_end_marker_within_an_argument_ends_nothing() -> None:
    call = '<tool_call>{"name": "f", "arguments": {"a": "</tool_call></tool_call>"}}</tool_call>'
    piece = split(call)

    assert piece.text == ""
    assert said(piece) == [("f", {"a": "</tool_call></tool_call>"})]


def test_a_call_with_an_open_string_takes_no_later_call_with_it() -> None:
    broken = '<tool_call>{"name": "f", "arguments": {"a": "}}</tool_call>'
    for between in ("", "\n", " and ", "</tool_call>" * (END_MARKERS_IN_STRINGS_MAX + 1)):
        piece = split(f"{broken}{between}{CALL}")

        assert piece.text == broken + between
        assert said(piece) == [("f", {"a": 1})]


def test_a_call_without_end_marker_runs_to_the_end_of_the_answer() -> None:
    piece = split(
        'ok[CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"x": "y"}}]', ENDLESS
    )

    assert piece.text == "ok"
    assert said(piece) == [("f", {}), ("g", {"x": "y"})]
    assert split('ok[CALLS][{"name": "f"', ENDLESS) == Piece('ok[CALLS][{"name": "f"')


def test_what_only_directs_the_answer_is_not_shown() -> None:
    call = '<call>{"name": "g"}</call>'
    piece = split(f"to=self|hm<eom>x to=user|hello<eom>y to=g|{call}", HEADED)

    assert (piece.reasoning, piece.text) == ("hm", "hello")
    assert said(piece) == [("g", {})]


def test_what_is_no_call_in_a_header_is_text() -> None:
    assert split("to=g|<call>what</call>", HEADED) == Piece("<call>what</call>")


def test_a_call_may_be_as_long_as_its_bound_and_no_longer_however_it_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(split_module, "CALL_CHARS_MAX", 50)
    longest = '{"name": "f", "arguments": {"a": "xxxxxxxxxxxxx"}}'
    assert len(longest) == 50

    for pieces in ([f"<tool_call>{longest}</tool_call>"], f"<tool_call>{longest}</tool_call>"):
        assert said(split(pieces)) == [("f", {"a": "x" * 13})]
    for too_much in (f"<tool_call> {longest}</tool_call>", f"<tool_call>{longest} and so on, and on"):
        assert split([too_much]) == split(too_much) == Piece(too_much)


def test_as_many_end_markers_as_the_bound_may_stand_in_a_string() -> None:
    def call(markers: int) -> str:
        return f'<tool_call>{{"name": "f", "arguments": {{"a": "{"</tool_call>" * markers}"}}}}</tool_call>'

    most = call(END_MARKERS_IN_STRINGS_MAX)
    assert said(split([most])) == [("f", {"a": "</tool_call>" * END_MARKERS_IN_STRINGS_MAX})]
    too_many = call(END_MARKERS_IN_STRINGS_MAX + 1)
    assert split([too_many]) == Piece(too_many)


def test_behind_the_first_end_marker_of_what_is_no_call_the_answer_is_looked_at_anew() -> None:
    broken = '<tool_call>{"name": "f", "arguments": {"a": "}}</tool_call>'

    assert split(f"{broken}<think>hm</think></tool_call>ok") == Piece(f"{broken}</tool_call>ok", "hm")


def test_of_an_endless_call_no_more_is_held_back_than_the_bound() -> None:
    stream = SplitStream(QWEN, reader(), Part.TEXT)
    shown = stream.add("<tool_call>").text
    for _ in range(3 * CALL_CHARS_MAX // 1000):
        shown += stream.add("x" * 1000).text

    assert len(shown) == len("<tool_call>") + 3 * CALL_CHARS_MAX // 1000 * 1000
