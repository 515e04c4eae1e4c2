import io
import threading
from pathlib import Path

import msgspec

from mlxsup.supervisor.models.fetcher.lock import held
from mlxsup.supervisor.models.fetcher.messages import Done, Message, Phase, Progress
from mlxsup.supervisor.models.fetcher.report import Reporter


def test_the_second_pull_waits_says_so_and_goes_on_when_the_first_has_ended(tmp_path: Path) -> None:
    waiting, order = threading.Event(), []

    def second() -> None:
        with held(tmp_path / "lock", waiting.set):
            order.append("second")

    thread = threading.Thread(target=second)
    with held(tmp_path / "lock", lambda: order.append("never")):
        thread.start()
        assert waiting.wait(5)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_a_phase_is_told_when_it_begins_and_when_it_is_complete_whatever_comes_between() -> None:
    stream = io.BytesIO()
    reporter = Reporter(stream)
    for done in range(1001):
        reporter.progress(Phase.DOWNLOAD, done, 1000)
    reporter.progress(Phase.CONVERT)
    reporter.send(Done(path="/p", digest="d"))
    lines = stream.getvalue().splitlines()
    decoded: list[Message] = [msgspec.json.decode(line, type=Message) for line in lines]
    assert decoded[0] == Progress(phase=Phase.DOWNLOAD, bytes_done=0, bytes_total=1000)
    assert decoded[-3:] == [
        Progress(phase=Phase.DOWNLOAD, bytes_done=1000, bytes_total=1000),
        Progress(phase=Phase.CONVERT),
        Done(path="/p", digest="d"),
    ]
    assert len(lines) < 20
