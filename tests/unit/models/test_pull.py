import sys
from pathlib import Path

import pytest
import trio

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.models.fetcher.messages import Phase, Progress
from mlxsup.supervisor.models.names import HubId
from mlxsup.supervisor.models.pull import pull
from mlxsup.supervisor.models.store import Pulled, Store, make_manifest

BOUND_S = 10


def publish(root: Path) -> Pulled:
    store = Store(root)
    store.prepare()
    prepared = store.partial(HubId("o/n")) / "model"
    prepared.mkdir(parents=True)
    (prepared / "config.json").write_text("{}")
    manifest = make_manifest(
        prepared, name="o/n", source="s", revision="r", licence=None, converter=None, digest="d"
    )
    return store.publish(HubId("o/n"), prepared, manifest)


async def run(root: Path, program: str, seen: list[Progress]) -> Pulled:
    """Pull `o/n` with a fetcher that is the Python text `program`."""
    with trio.fail_after(BOUND_S):
        fetcher = (sys.executable, "-c", program)
        return await pull("o/n", store_root=root, on_progress=seen.append, fetcher=fetcher)


async def failure(root: Path, program: str, seen: list[Progress] | None = None) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await run(root, program, [] if seen is None else seen)
    return caught.value


async def test_a_model_that_is_there_starts_no_fetcher(tmp_path: Path) -> None:
    pulled = publish(tmp_path)
    assert await run(tmp_path, "raise SystemExit('started')", []) == pulled


async def test_a_name_that_is_none_starts_no_fetcher(tmp_path: Path) -> None:
    with pytest.raises(RpcError) as caught:
        await pull("../n", store_root=tmp_path, on_progress=print, fetcher=("/nonexistent",))
    assert caught.value.kind is ErrorKind.INVALID_PARAMS


async def test_progress_is_told_in_order_and_the_model_is_returned(tmp_path: Path) -> None:
    prepared = publish(tmp_path / "elsewhere").path
    (tmp_path / "models").mkdir()
    program = f"""if True:
        import os, sys
        root, name = sys.argv[1:]
        assert name == "o/n"
        print('{{"type":"progress","phase":"download","bytes_done":1,"bytes_total":2}}', flush=True)
        print('{{"type":"progress","phase":"store"}}', flush=True)
        os.rename({str(prepared)!r}, root + "/models/o--n")
        print('{{"type":"done","path":"/p","digest":"d"}}')
    """
    seen: list[Progress] = []
    pulled = await run(tmp_path, program, seen)
    assert pulled.path == tmp_path / "models" / "o--n"
    assert seen == [Progress(phase=Phase.DOWNLOAD, bytes_done=1, bytes_total=2), Progress(phase=Phase.STORE)]


async def test_a_failure_that_the_fetcher_tells_is_raised_as_it_is(tmp_path: Path) -> None:
    line = '{"type":"failed","kind":"limit_exceeded","message":"full","retriable":true}'
    error = await failure(tmp_path, f"print({line!r}); raise SystemExit(1)")
    assert (error.kind, error.message, error.data.retriable) == (ErrorKind.LIMIT_EXCEEDED, "full", True)


@pytest.mark.parametrize(
    ("program", "ending"),
    [
        ("import os; os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("raise SystemExit(3)", "ended with status 3"),
        ("pass", "ended with status 0"),
        ("""print('{"type":"done","path":"/p","digest":"d"}')""", "ended with status 0"),
    ],
)
async def test_a_fetcher_without_a_result_is_told_by_its_end(
    tmp_path: Path, program: str, ending: str
) -> None:
    error = await failure(tmp_path, program)
    assert error.kind is ErrorKind.INTERNAL
    assert error.message == f"cannot pull the model: the fetcher {ending} without a result"


async def test_the_end_of_stderr_is_a_note_and_never_in_the_message(tmp_path: Path) -> None:
    program = "import sys; sys.stderr.write('x' * 1_000_000 + '/home/secret'); raise SystemExit(1)"
    error = await failure(tmp_path, program)
    assert "secret" not in error.message
    [note] = error.__notes__
    assert note.endswith("/home/secret")
    assert len(note) == 16 * 1024


async def test_a_line_that_is_no_message_or_too_long_is_passed_over(tmp_path: Path) -> None:
    program = """if True:
        import sys
        print("hello\\n{\\n[]\\n{\\"type\\":\\"other\\"}")
        sys.stdout.buffer.write(b"\\xff\\n" + b"x" * 1_000_000 + b"\\n")
        print('{"type":"failed","kind":"model_not_found","message":"no","retriable":false}')
        print('{"type":"done","path":"/p","digest":"d"}')
    """
    assert (await failure(tmp_path, program)).kind is ErrorKind.MODEL_NOT_FOUND


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# Tells its own pid and its child's as bytes done and total; neither heeds SIGTERM if told so.
FAMILY = """if True:
    import os, signal, sys
    if {stubborn}:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = os.fork()
    if not child:
        signal.pause()
    line = '{{"type":"progress","phase":"download","bytes_done":%d,"bytes_total":%d}}'
    print(line % (os.getpid(), child), flush=True)
    {then}
    while True:
        signal.pause()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_cancelled_pull_leaves_neither_the_fetcher_nor_its_child(
    tmp_path: Path, stubborn: bool
) -> None:
    pids: list[int] = []
    with trio.fail_after(BOUND_S), trio.CancelScope() as scope:

        def cancel(progress: Progress) -> None:
            assert progress.bytes_total is not None
            pids.extend((progress.bytes_done, progress.bytes_total))
            scope.cancel()

        fetcher = (sys.executable, "-c", FAMILY.format(stubborn=stubborn, then=""))
        await pull("o/n", store_root=tmp_path, on_progress=cancel, fetcher=fetcher, grace_s=0.05)
    assert scope.cancelled_caught
    assert len(pids) == 2
    await gone(pids)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
async def test_a_child_that_outlives_the_fetcher_is_ended_with_it(tmp_path: Path) -> None:
    program = FAMILY.format(stubborn=True, then="os.kill(os.getpid(), signal.SIGKILL)")
    seen: list[Progress] = []
    assert "SIGKILL" in (await failure(tmp_path, program, seen)).message
    assert seen[0].bytes_total is not None
    await gone([seen[0].bytes_total])


async def gone(pids: list[int]) -> None:
    """Wait for the kernel: a process that was sent SIGKILL is dead soon, not at once."""
    with trio.fail_after(BOUND_S):
        while any(is_alive(pid) for pid in pids):
            await trio.lowlevel.checkpoint()


async def test_a_fetcher_leads_a_session_of_its_own_so_that_ctrl_c_does_not_reach_it(tmp_path: Path) -> None:
    program = """if True:
        import os
        print('{"type":"progress","phase":"wait","bytes_done":%d}' % (os.getsid(0) == os.getpid()))
    """
    seen: list[Progress] = []
    await failure(tmp_path, program, seen)
    assert seen == [Progress(phase=Phase.WAIT, bytes_done=1)]
