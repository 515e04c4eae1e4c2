"""`mlxsup chat` and Ctrl-C, with a supervisor that is none."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import mlxsup.supervisor.cli.chat as chat_module
from mlxsup.protocol.generation import ChatParams, FinishReason, StreamDelta
from mlxsup.supervisor.cli.main import run_command


class InterruptedStream:
    """Somebody types Ctrl-C after the first piece; asked for its end it ends with that piece."""

    def __init__(self) -> None:
        self.result: Any = None
        self.cancelled = False
        self._pieces = self._make()

    def _make(self) -> Iterator[str | None]:
        yield "piece"
        yield None
        self.result = SimpleNamespace(finish_reason=FinishReason.CANCELLED, text="piece")

    def next_delta(self) -> StreamDelta | None:
        for piece in self._pieces:
            if piece is None:
                raise KeyboardInterrupt
            return StreamDelta(id=1, index=0, text=piece)
        return None

    def cancel(self) -> None:
        self.cancelled = True


class ThoughtfulStream:
    """Answers at once, after some reasoning."""

    def __init__(self) -> None:
        self.result = SimpleNamespace(finish_reason=FinishReason.STOP, text="An answer.")
        self._deltas = [
            StreamDelta(id=1, index=0, text="", reasoning="Let me "),
            StreamDelta(id=1, index=0, text="", reasoning="think."),
            StreamDelta(id=1, index=0, text="An "),
            StreamDelta(id=1, index=0, text="answer."),
        ]

    def next_delta(self) -> StreamDelta | None:
        return self._deltas.pop(0) if self._deltas else None


Serve = Callable[[Any], list[dict[str, Any]]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Serve:
    """Answers each question with this stream; gives the list of the params that are asked with."""

    def serve(stream: Any) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []

        def ask(_: str, params: Any) -> Any:
            asked.append(msgspec.json.decode(msgspec.json.encode(params)))
            return stream

        @contextmanager
        def no_supervisor(*_: object) -> Iterator[Any]:
            yield SimpleNamespace(call=lambda *_: SimpleNamespace(models={}), stream=ask)

        monkeypatch.setattr(chat_module, "_client", no_supervisor)
        return asked

    monkeypatch.setenv("MLXSUP_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").touch()
    return serve


@pytest.fixture
def stream(serve: Serve) -> InterruptedStream:
    stream = InterruptedStream()
    serve(stream)
    return stream


def test_the_answer_goes_to_stdout_and_what_the_model_thinks_before_it_does_not(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(ThoughtfulStream())
    monkeypatch.setattr(sys, "argv", ["mlxsup", "chat", "hello"])
    run_command()
    shown = capsys.readouterr()
    assert shown.out == "An answer.\n"
    assert shown.err.endswith("Let me think.\n\n")


def test_options_are_the_params_that_they_are_named_after(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = serve(ThoughtfulStream())
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    options = ["--priority", "background", "--client", "me", "--deadline", "1.5", "--schema", str(schema)]
    monkeypatch.setattr(sys, "argv", ["mlxsup", "chat", *options, "hello"])
    run_command()
    (params,) = asked
    assert (params["priority"], params["client"], params["deadline_ms"]) == ("background", "me", 1500)
    assert params["response_format"]["type"] == "json_schema"
    assert params["response_format"]["json_schema"]["schema"] == {"type": "object"}
    # As the server reads them.
    msgspec.convert(params, ChatParams)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000], ids=["no JSON", "no object", "too deep"])
def test_a_file_that_is_no_schema_is_refused_before_anything_is_asked(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    asked = serve(ThoughtfulStream())
    (tmp_path / "schema.json").write_text(text)
    monkeypatch.setattr(sys, "argv", ["mlxsup", "chat", "--schema", str(tmp_path / "schema.json"), "hello"])
    with pytest.raises(SystemExit) as ended:
        run_command()
    assert ended.value.code == 2
    assert asked == []


@pytest.mark.parametrize(
    ("arguments", "is_typed", "priority"),
    [
        ([], True, "interactive"),
        ([], False, None),
        (["hello"], True, None),
        (["--priority", "high"], True, "high"),
    ],
    ids=str,
)
def test_a_conversation_that_somebody_types_is_interactive_unless_told_otherwise(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    is_typed: bool,
    priority: str | None,
) -> None:
    asked = serve(ThoughtfulStream())
    typed = iter(["hello"])

    def type_in(_: str) -> str:
        text = next(typed, None)
        if text is None:
            raise EOFError
        return text

    monkeypatch.setattr("builtins.input", type_in)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: is_typed))
    monkeypatch.setattr(sys, "argv", ["mlxsup", "chat", *arguments])
    run_command()
    assert [params["priority"] for params in asked] == [priority]


def test_an_answer_that_ctrl_c_ended_is_shown_so_far_and_ends_the_command_as_interrupted(
    stream: InterruptedStream, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mlxsup", "chat", "hello"])
    # From which the console script makes status 130.
    with pytest.raises(KeyboardInterrupt):
        run_command()
    assert stream.cancelled
    assert capsys.readouterr().out == "piece\n"


@pytest.mark.parametrize(("ended_by", "status"), [(EOFError, None), (KeyboardInterrupt, KeyboardInterrupt)])
def test_a_conversation_outlives_the_answer_and_ends_with_ctrl_d_or_as_interrupted_with_ctrl_c(
    stream: InterruptedStream,
    monkeypatch: pytest.MonkeyPatch,
    ended_by: type[BaseException],
    status: type[BaseException] | None,
) -> None:
    typed = iter(["hello"])

    def type_in(_: str) -> str:
        text = next(typed, None)
        if text is None:
            raise ended_by
        return text

    monkeypatch.setattr("builtins.input", type_in)
    monkeypatch.setattr(sys, "argv", ["mlxsup", "chat"])
    ended: type[BaseException] | None = None
    try:
        run_command()
    except KeyboardInterrupt:
        ended = KeyboardInterrupt
    assert stream.cancelled
    assert next(typed, None) is None
    assert ended is status
