"""A worker with the real machinery around an engine that computes nothing and misbehaves when told to.

A prompt says what its request does: `count N` gives N tokens, `hold FIFO` never lets go of the interpreter lock
again, `hang FIFO` waits for ever and lets it go, each after a byte into that FIFO; `wait FIFO` gives one token, and its
end once that FIFO has been written to; `fork FIFO` leaves a child and writes its process id there; `die` sends itself SIGKILL, and `raise TEXT` raises an exception.

With a FIFO as its argument it writes its process id there, a line, once it waits for a model.
"""

from mlxsup.protocol.descriptors import claim_pipes

_PIPES = claim_pipes()

import ctypes  # noqa: E402
import os  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

from mlxsup.protocol.generation import FinishReason  # noqa: E402
from mlxsup.protocol.worker_link import Generate, Load, Loaded, Tune  # noqa: E402
from mlxsup.worker.engine.interface import Emission, IsWanted, Lease, LoadEngine, Prepared, ReportLoad  # noqa: E402
from mlxsup.worker.process import run_worker  # noqa: E402

_LONG_S = 3600


class ScriptedEngine:
    def __init__(self) -> None:
        self.loaded = Loaded(
            model_type="scripted", context_tokens=100, weights_bytes=0, vocabulary_tokens=10, load_s=0.0
        )
        self._scripts: dict[int, tuple[str, int]] = {}

    def prepare(self, request: Generate) -> Prepared:
        return Prepared([1], request)

    def submit(self, id: int, prepared: Prepared) -> None:
        self._scripts[id] = (prepared.request.prompt or "", 0)

    def cancel(self, id: int) -> Emission:
        del self._scripts[id]
        return Emission(id, "", [], FinishReason.CANCELLED)

    give_way = cancel

    def rest(self, is_wanted: IsWanted) -> None:
        pass

    def forget(self, id: int) -> None:
        """Nothing is kept."""

    def share(self, lease: Lease) -> None:
        """It reads no prompts."""

    def tune(self, order: Tune) -> None:
        """It computes nothing that could be bounded."""

    @property
    def prefill_tokens(self) -> int:
        return 0

    def step(self, _: IsWanted) -> list[Emission]:
        return [self._advance(id, *script) for id, script in list(self._scripts.items())]

    def _advance(self, id: int, script: str, done: int) -> Emission:
        verb, _, rest = script.partition(" ")
        match verb:
            case "fork":
                child = subprocess.Popen(
                    ["sleep", str(_LONG_S)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
                )
                Path(rest).write_bytes(b"%d\n" % child.pid)
                del self._scripts[id]
                return Emission(id, "", [], FinishReason.STOP)
            case "hold":
                Path(rest).write_bytes(b"!")
                # PyDLL keeps the lock during the call, as a careless extension does.
                ctypes.PyDLL(None).sleep(_LONG_S)
            case "hang":
                Path(rest).write_bytes(b"!")
                time.sleep(_LONG_S)
            case "wait" if done:
                Path(rest).read_bytes()
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise RuntimeError(rest)
        self._scripts[id] = (script, done + 1)
        if done + 1 < (2 if verb == "wait" else int(rest)):
            return Emission(id, "x", [1])
        del self._scripts[id]
        return Emission(id, "x", [1], FinishReason.LENGTH)

    def tokenize(self, text: str) -> list[int]:
        return list(range(len(text)))

    def detokenize(self, tokens: list[int]) -> str:
        return "x" * len(tokens)


def load(order: Load, report: ReportLoad) -> ScriptedEngine:
    report("weights", 1, 1)
    return ScriptedEngine()


def import_engine() -> LoadEngine:
    if sys.argv[1:]:
        Path(sys.argv[1]).write_bytes(b"%d\n" % os.getpid())
    return load


run_worker(_PIPES, import_engine)
