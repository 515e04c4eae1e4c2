"""Makes requests ready beside the MLX thread: a long prompt's tokenising never stops the batch."""

import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable

import msgspec

from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.jsonrpc import encode_error, encode_result
from mlxsup.worker.engine.interface import Embeds, Engine, Prepared, PreparedTexts
from mlxsup.worker.inbox import Command
from mlxsup.worker.outbox import Outbox
from mlxsup.worker.vitals import Vitals


class Ready(msgspec.Struct, frozen=True):
    """A request to start; `prepared` is None when it was answered with an error instead."""

    id: int
    prepared: Prepared | PreparedTexts | None


class Preparation:
    """One thread; `put` never waits. Results go to `deliver`, answers that need no MLX to the outbox."""

    def __init__(
        self, engine: Engine, outbox: Outbox, vitals: Vitals, deliver: Callable[[Ready], None]
    ) -> None:
        self._vitals = vitals
        self._engine = engine
        self._outbox = outbox
        self._deliver = deliver
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="preparation", daemon=True).start()

    def put(self, command: Command) -> None:
        self._commands.put(command)

    def _run(self) -> None:
        while True:
            self._vitals.preparing_since_s = None
            command = self._commands.get()
            self._vitals.preparing_since_s = time.monotonic()
            prepared = None
            try:
                prepared = self._prepare(command)
            except RpcError as error:
                self._outbox.send(encode_error(command.id, error))
            except Exception:  # noqa: BLE001  (a tokenizer's or a template's own failure ends one request only)
                _print_failure()
                failure = RpcError(
                    ErrorKind.INTERNAL, "cannot prepare this request: the model's tokenizer failed on it"
                )
                self._outbox.send(encode_error(command.id, failure))
            if isinstance(command.params, link.Generate | link.Embed):
                self._deliver(Ready(command.id, prepared))

    def _prepare(self, command: Command) -> Prepared | PreparedTexts | None:
        match command.params:
            case link.Generate() as request:
                return self._engine.prepare(request)
            case link.Embed() as texts:
                if not isinstance(self._engine, Embeds):
                    raise RpcError(ErrorKind.UNSUPPORTED, "this model's engine makes no embeddings")
                return self._engine.prepare_texts(texts)
            case link.Tokenize(text=text):
                result: object = link.Tokenized(tokens=self._engine.tokenize(text))
            case link.Detokenize(tokens=tokens):
                result = link.Detokenized(text=self._engine.detokenize(tokens))
        answer = encode_result(command.id, result)
        if len(answer) > link.FRAME_BYTES_MAX:
            raise RpcError(
                ErrorKind.LIMIT_EXCEEDED, "the answer is too long for one frame; send less text at once"
            )
        self._outbox.send(answer)
        return None


def _print_failure() -> None:
    """The traceback, each line marked: it explains no death that may come later."""
    lines = traceback.format_exc().splitlines()
    sys.stderr.write("".join(f"{link.REQUEST_MARK}{line}\n" for line in lines))
    sys.stderr.flush()
