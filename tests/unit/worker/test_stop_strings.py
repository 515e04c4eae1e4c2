from hypothesis import given
from hypothesis import strategies as st

from mlxsup.worker.engine.stop_strings import StopStrings

LETTERS = st.text("ab", max_size=12)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple)


def run(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    scanner = StopStrings(stops)
    shown = ""
    for piece in pieces:
        text, stopped = scanner.feed(piece)
        shown += text
        if stopped:
            return shown, True
    return shown + scanner.flush(), False


@given(STOPS, LETTERS, st.data())
def test_how_a_text_is_split_does_not_change_where_it_stops(
    stops: tuple[str, ...], text: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    assert run(stops, pieces) == run(stops, list(text))


@given(STOPS, st.lists(LETTERS, max_size=6))
def test_what_is_shown_never_holds_a_stop_string_and_nothing_else_is_lost(
    stops: tuple[str, ...], pieces: list[str]
) -> None:
    shown, stopped = run(stops, pieces)
    text = "".join(pieces)

    assert not any(stop in shown for stop in stops)
    assert stopped == any(stop in text for stop in stops)
    assert text.startswith(shown)
    assert stopped or shown == text


@given(STOPS, st.lists(LETTERS, max_size=6))
def test_only_what_may_begin_a_stop_string_is_held_back(stops: tuple[str, ...], pieces: list[str]) -> None:
    scanner = StopStrings(stops)
    shown = ""
    for piece in pieces:
        text, stopped = scanner.feed(piece)
        shown += text
        if stopped:
            return
    held = scanner.flush()

    assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
