"""A worker in memory to whom happens what its fate says; all that it does and suffers goes into the history."""

import math
import signal
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import msgspec
import trio

from mlxsup.protocol import worker_link as link
from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.jsonrpc import Call, encode_error, encode_notification
from tests.fakes.memory_worker import MemoryWorker, Plan
from tests.simulation.history import Died, Entry, Loading, Order, Signalled, Spawned, Struck, Told
from tests.simulation.pipe import make_pipe
from tests.simulation.schedule import REFUSED, Cause, Fate, Fault, Ill, Poison, When

_REFUSAL = RpcError(ErrorKind.MODEL_LOAD_FAILED, "cannot load the model: no such tensor")
_NONSENSE = b'{"jsonrpc":"2.0","id":%d,"result":{"weights":"many"}}'
_BAD_PROMPT = RpcError(ErrorKind.INVALID_PARAMS, "the prompt is longer than the context")
_HEARTBEAT = f'"{link.HEARTBEAT}"'.encode()


class Surroundings(Protocol):
    """The world, as far as a worker knows it."""

    def note(self, entry: Entry) -> None: ...

    def poison(self, prompt: str | None) -> Poison | None: ...


class SimulatedWorker(MemoryWorker):
    """`model` is that of its load order, None for a spare. `waited` once somebody has got its exit status."""

    make_pipe = staticmethod(make_pipe)

    def __init__(self, pid: int, fate: Fate, beat_s: float, world: Surroundings) -> None:
        super().__init__(pid, _plan(fate, beat_s))
        self.model: str | None = None
        self.struck = False
        self.waited = False
        self._world = world
        self.outlives_sigkill = fate.outlives_sigkill
        self.undead = False
        self._ill = fate.ill
        self._counts = dict.fromkeys(When, 0)
        self._hung = self._hung_before = False
        self._told_to_load = trio.Event()
        self._continued = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.stdin.on_close = self._note_told
        world.note(
            Spawned(
                at_s=trio.current_time(),
                pid=pid,
                nonsense=fate.answers_load_with_nonsense,
                outlives_sigkill=fate.outlives_sigkill,
            )
        )

    @property
    def sequences(self) -> int:
        return len(self._sequences)

    @property
    def pipes_closed(self) -> bool:
        """Whether the supervisor has closed its ends."""
        return bool(self.stdin.closed and self.stdout.closed and self.stderr.closed)

    def get_well(self) -> None:
        """What has not happened yet will not happen."""
        self._ill = None
        if not self.struck:
            self.plan = msgspec.structs.replace(self.plan, load_error=None, load_answer=None)

    def _note_told(self) -> None:
        if self.returncode is None:
            self._world.note(Told(at_s=trio.current_time(), pid=self.pid))

    # As a process.

    async def wait(self) -> int:
        returncode = await super().wait()
        self.waited = True
        return returncode

    def signal_group(self, number: signal.Signals) -> None:
        if self.returncode is not None:
            return
        self._world.note(Signalled(at_s=trio.current_time(), pid=self.pid, name=number.name))
        if number is signal.SIGCONT and self.stopped:
            self._go_on()
        if number is signal.SIGKILL and self.outlives_sigkill:
            self.undead = True
        else:
            super().signal_group(number)

    def _go_on(self) -> None:
        """What it was about to say when it was stopped, it says now; what hung before still does."""
        self.stopped = False
        if not self._hung_before:
            self._hung = False
            self.plan = msgspec.structs.replace(self.plan, silent_s=math.inf)
        self._given.set()
        self._continued.set()

    def die(self, returncode: int) -> None:
        if self.returncode is None:
            self._world.note(Died(at_s=trio.current_time(), pid=self.pid, returncode=returncode))
        super().die(returncode)

    # What it does.

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._happens(When.AGE)
            await super()._main()

    async def _listen(self) -> None:
        await super()._listen()
        self._happens(When.TOLD)
        if self._hung:
            await trio.sleep_forever()

    async def _obey(self, call: Call) -> None:
        if self._hung:
            return
        match call.method:
            case link.LOAD:
                path = msgspec.json.decode(call.params or b"", type=link.Load).model_path
                self.model = path.rpartition("/")[2]
                self._world.note(Loading(at_s=trio.current_time(), pid=self.pid, model=self.model))
                self._told_to_load.set()
                self._happens(When.LOAD)
            case link.GENERATE:
                order = msgspec.json.decode(call.params or b"", type=link.Generate)
                self._note_order(call, order)
                self._happens(When.GENERATE)
                if (order.prompt or "").startswith(REFUSED):
                    assert isinstance(call.id, int)
                    await self._say(encode_error(call.id, _BAD_PROMPT))
                    return
            case link.CANCEL:
                self._happens(When.CANCEL)
        if call.method == link.LOAD:
            # It hears of its end also while it loads.
            assert self._nursery is not None
            self._nursery.start_soon(super()._obey, call)
            self._nursery.start_soon(self._report_load)
        else:
            await super()._obey(call)

    def _note_order(self, call: Call, order: link.Generate) -> None:
        assert isinstance(call.id, int)
        # When its prompt is read is nothing of what is asked.
        fresh = msgspec.structs.replace(order, delivered_tokens=[], delivered_chars=0, reads_first=False)
        self._world.note(
            Order(
                at_s=trio.current_time(),
                pid=self.pid,
                request=call.id,
                prompt=order.prompt or "",
                same=zlib.crc32(msgspec.json.encode(fresh)),
                delivered=order.delivered_tokens,
                delivered_chars=order.delivered_chars,
                batch=len(self._sequences) + 1,
            )
        )

    async def _say(self, *frames: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self.stopped:
            await self._continued.wait()
        is_beat = _HEARTBEAT in frames[0]
        if self._lived_s() < self.plan.silent_s and (is_beat or not self._hung):
            self._write(b"".join(frame + b"\n" for frame in frames))

    def _write(self, data: bytes) -> None:
        with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
            self._outgoing.write(data)

    async def _report_load(self) -> None:
        for phase in ("weights", "warm"):
            await trio.sleep(self.plan.load_s * 0.4)
            progress = link.LoadProgress(phase=phase, bytes_done=1, bytes_total=2)
            await self._say(encode_notification(link.PROGRESS, progress))

    async def _beat(self) -> None:
        await self._told_to_load.wait()
        await super()._beat()

    def _computes(self, id: int, order: link.Generate, position: int) -> None:
        poison = self._world.poison(order.prompt)
        if poison is not None and position == poison.position:
            self.strike(Fault.DIE, poison.cause, request=id)
        else:
            self._happens(When.TOKEN)

    # What happens to it.

    def _happens(self, when: When) -> None:
        self._counts[when] += 1
        ill = self._ill
        if ill is None or ill.when is not when or ill.nth != self._counts[when]:
            return
        if ill.after_s or when is When.AGE:
            assert self._nursery is not None
            self._nursery.start_soon(self._fall_ill_after, ill)
        else:
            self.strike(ill.fault, ill.cause)

    async def _fall_ill_after(self, ill: Ill) -> None:
        await trio.sleep(ill.after_s)
        if self._ill is not None:
            self.strike(ill.fault, ill.cause)

    def strike(self, fault: Fault, cause: Cause, request: int | None = None) -> None:
        """Let it befall this worker now, unless it is dead."""
        if self.returncode is not None:
            return
        self.struck = True
        entry = Struck(
            at_s=trio.current_time(),
            pid=self.pid,
            fault=fault,
            cause=cause,
            request=request,
        )
        self._world.note(entry)
        _FAULTS[fault](self, cause)

    def die_of(self, cause: Cause) -> None:
        # As a process writes before it ends: all of it is in the pipe, and nothing comes after it.
        with suppress(trio.BrokenResourceError):
            self.complaints.write(cause.words.encode())
        self.oom_killed += cause.for_memory
        self.die(cause.returncode)

    def get_stuck(self, _: Cause) -> None:
        self._hung = True
        self.plan = msgspec.structs.replace(self.plan, stuck_s=self._lived_s())

    def fall_mute(self, _: Cause) -> None:
        self._hung = True
        self.plan = msgspec.structs.replace(self.plan, silent_s=self._lived_s())

    def be_stopped(self, cause: Cause) -> None:
        self.stopped = True
        self._continued = trio.Event()
        self._hung_before = self._hung
        self.fall_mute(cause)

    def speak_nonsense(self, _: Cause) -> None:
        self._write(b"loading [####------] 40%\n")

    def tear_a_frame(self, _: Cause) -> None:
        self._write(b'{"jsonrpc":"2.0","method":"st')

    def close_its_output(self, _: Cause) -> None:
        self._outgoing.close()

    def close_its_input(self, _: Cause) -> None:
        self.close_input()


def _plan(fate: Fate, beat_s: float) -> Plan:
    return Plan(
        hello_s=fate.hello_s,
        load_s=fate.load_s,
        token_s=fate.token_s,
        text_lag_tokens=fate.text_lag_tokens,
        obeys_sigterm=fate.obeys_sigterm,
        ends_when_told_s=fate.ends_when_told_s,
        load_error=_REFUSAL if fate.refuses_load else None,
        load_answer=_NONSENSE if fate.answers_load_with_nonsense else None,
        beat_s=beat_s,
        answers_questions=True,
    )


_FAULTS: dict[Fault, Callable[[SimulatedWorker, Cause], None]] = {
    Fault.DIE: SimulatedWorker.die_of,
    Fault.STUCK: SimulatedWorker.get_stuck,
    Fault.MUTE: SimulatedWorker.fall_mute,
    Fault.STOPPED: SimulatedWorker.be_stopped,
    Fault.GARBAGE: SimulatedWorker.speak_nonsense,
    Fault.TORN: SimulatedWorker.tear_a_frame,
    Fault.CLOSE_OUTPUT: SimulatedWorker.close_its_output,
    Fault.CLOSE_INPUT: SimulatedWorker.close_its_input,
}
