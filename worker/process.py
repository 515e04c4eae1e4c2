"""A worker's life: say hello, load what it is told, compute until it is told to end.

It ends itself when its input closes, in three ways, the first that can: the batch loop sees it between two
steps; the reader thread waits a moment for that and then exits; the native watch does the same without the
interpreter lock, while some library holds it.
"""

import faulthandler
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from typing import NoReturn

from mlxsup import native
from mlxsup.protocol import worker_link as link
from mlxsup.protocol.descriptors import Pipes
from mlxsup.protocol.errors import RpcError
from mlxsup.protocol.exit_codes import ExitCode
from mlxsup.protocol.jsonrpc import encode_error, encode_notification, encode_result
from mlxsup.worker.batch_loop import BatchLoop
from mlxsup.worker.engine.interface import Engine, LoadEngine
from mlxsup.worker.heartbeat import start_heartbeat
from mlxsup.worker.inbox import Command, EndOfInput, Inbox, read_commands
from mlxsup.worker.mlx_policy import apply_limits
from mlxsup.worker.outbox import Outbox
from mlxsup.worker.vitals import Vitals

# From the end of the input to a hard exit: enough to finish a write, short enough to leave no orphan.
ORPHAN_GRACE_S = 0.3
_ORPHAN_CHECK_S = 0.005
_DRAIN_S = 5.0
# Progress of a load is a courtesy: more often than this nobody can see it.
_PROGRESS_INTERVAL_S = 0.1

# How MLX's own errors begin after which nothing in GPU memory can be trusted.
_GPU_ERRORS = ("[METAL]", "[metal::", "CUDA", "cuda")


class _TerminatedError(BaseException):
    """SIGTERM came. No `Exception`: a loader takes those for faults of the model, and the worker would live on."""


def _terminate(_number: int, _frame: object) -> NoReturn:
    raise _TerminatedError


class _Life:
    """What the reader thread and the main thread share about the end."""

    def __init__(self) -> None:
        self.grace_s = ORPHAN_GRACE_S
        self.over = threading.Event()
        self.told_to_end = False
        # The input has ended all the same.
        self.deserted = False


def run_worker(pipes: Pipes, import_engine: Callable[[], LoadEngine]) -> NoReturn:
    """Serve on `pipes` until told to end; exits the process with an `ExitCode`.

    `import_engine` does the imports that take seconds; by then the end of the supervisor is watched for.
    """
    supervisor_pid = os.getppid()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # A terminal's Ctrl-C is the supervisor's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Obeyed between two steps of Python: a kernel that runs on the GPU is not cut off.
    signal.signal(signal.SIGTERM, _terminate)
    signal_key = _report_signal_origin()
    life = _Life()
    inbox = Inbox()
    outbox = Outbox(pipes.outgoing)
    watch = native.watch_orphan(pipes.incoming, int(ORPHAN_GRACE_S * 1000), int(ExitCode.ORPHANED))

    def deliver(item: Command | EndOfInput) -> None:
        if isinstance(item, Command) and isinstance(item.params, link.Shutdown):
            life.told_to_end = True
            life.grace_s = max(item.params.grace_s, ORPHAN_GRACE_S)
            if watch is not None:
                watch.set_grace_ms(int(life.grace_s * 1000))
        if isinstance(item, EndOfInput):
            life.deserted = not life.told_to_end
        inbox.put(item)

    def read() -> None:
        read_commands(pipes.incoming, deliver)
        if not life.over.wait(life.grace_s):
            _end_group_of_orphan(supervisor_pid)
            os._exit(ExitCode.ORPHANED)

    threading.Thread(target=read, name="reader", daemon=True).start()
    try:
        code = _serve(inbox, outbox, import_engine(), orphan_watch=watch is not None, signal_key=signal_key)
    except _TerminatedError:
        code = ExitCode.TERMINATED
    except Exception as error:  # noqa: BLE001  (every exception that gets here ends the process, with its class)
        traceback.print_exc(file=sys.stderr)
        code = ExitCode.GPU_ERROR if str(error).startswith(_GPU_ERRORS) else ExitCode.DEFECT
    life.over.set()
    outbox.drain(_DRAIN_S)
    sys.stderr.flush()
    if life.deserted:
        _await_orphanhood(supervisor_pid)
    _end_group_of_orphan(supervisor_pid)
    # Not sys.exit: tearing down a GPU runtime with threads alive is a crash of its own.
    os._exit(code)


def _await_orphanhood(supervisor_pid: int) -> None:
    """A process that ends closes its pipes a moment before its children get another parent."""
    deadline_s = time.monotonic() + ORPHAN_GRACE_S
    while os.getppid() == supervisor_pid and time.monotonic() < deadline_s:
        time.sleep(_ORPHAN_CHECK_S)


def _end_group_of_orphan(supervisor_pid: int) -> None:
    """What this process has forked ends with it. A supervisor that lives sees to that itself."""
    if os.getppid() != supervisor_pid and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)


def _report_signal_origin() -> str:
    """To be called behind faulthandler and all handlers of signals: what comes later would take its place.

    Gives the key that only this worker's reports have, or nothing where they were not built.
    """
    key = os.urandom(8).hex()
    return key if native.report_signal_origin(key) else ""


def _serve(
    inbox: Inbox, outbox: Outbox, load_engine: LoadEngine, *, orphan_watch: bool, signal_key: str
) -> ExitCode:
    vitals = Vitals()
    outbox.send(encode_notification(link.HELLO, _hello(orphan_watch, signal_key)))
    held: list[object] = []
    load = None
    while load is None:
        for item in inbox.take(wait=True):
            if isinstance(item, EndOfInput):
                return ExitCode.CLEAN if item.fault is None else ExitCode.PROTOCOL_ERROR
            if isinstance(item.params, link.Shutdown):
                return ExitCode.CLEAN
            if isinstance(item.params, link.Load):
                load = item
            elif load is None:
                return ExitCode.PROTOCOL_ERROR
            else:
                held.append(item)
    engine = _load(load, load_engine, outbox, vitals)
    if engine is None:
        return ExitCode.BAD_CONFIGURATION
    for item in held:
        inbox.put(item)
    return BatchLoop(engine, inbox, outbox, vitals).run()


def _load(command: Command, load_engine: LoadEngine, outbox: Outbox, vitals: Vitals) -> Engine | None:
    order = command.params
    start_heartbeat(vitals, outbox, order.heartbeat_interval_s)
    apply_limits(order.wired_limit_bytes, order.cache_limit_bytes)
    last_phase, last_s = "", 0.0

    def report(phase: str, bytes_done: int, bytes_total: int) -> None:
        vitals.advance(f"load:{phase}", bytes_done)
        nonlocal last_phase, last_s
        now_s = time.monotonic()
        if phase != last_phase or now_s - last_s >= _PROGRESS_INTERVAL_S or bytes_done == bytes_total:
            last_phase, last_s = phase, now_s
            progress = link.LoadProgress(phase=phase, bytes_done=bytes_done, bytes_total=bytes_total)
            outbox.send(encode_notification(link.PROGRESS, progress))

    try:
        engine = load_engine(order, report)
    except RpcError as error:
        outbox.send(encode_error(command.id, error))
        return None
    outbox.send(encode_result(command.id, engine.loaded))
    return engine


def _hello(orphan_watch: bool, signal_key: str) -> link.Hello:
    import mlx.core as mx

    return link.Hello(
        pid=os.getpid(),
        python=platform.python_version(),
        mlx=version("mlx"),
        mlx_lm=version("mlx-lm"),
        device=_device(str(mx.default_device().type).rpartition(".")[2]),
        orphan_watch=orphan_watch,
        signal_key=signal_key,
    )


def _device(kind: str) -> str:
    if kind != "gpu":
        return "cpu"
    import mlx.core as mx

    return "metal" if mx.metal.is_available() else "cuda"
