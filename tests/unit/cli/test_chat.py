"""`mlxsup chat` and Ctrl-C, with a supervisor that is none."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mlxsup.supervisor.cli.chat as chat_module
from mlxsup.protocol.generation import FinishReason
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

    def __iter__(self) -> "InterruptedStream":
        return self

    def __next__(self) -> str:
        piece = next(self._pieces)
        if piece is None:
            raise KeyboardInterrupt
        return piece

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> InterruptedStream:
    stream = InterruptedStream()

    @contextmanager
    def no_supervisor(*_: object) -> Iterator[Any]:
        yield SimpleNamespace(call=lambda *_: SimpleNamespace(models={}), stream=lambda *_: stream)

    monkeypatch.setattr(chat_module, "_client", no_supervisor)
    monkeypatch.setenv("MLXSUP_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").touch()
    return stream


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
