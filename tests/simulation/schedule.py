"""What a schedule is: all that will happen to a supervisor, known beforehand, in seconds from its start. Pure."""

from enum import StrEnum
from typing import Any

import msgspec

from mlxsup.config.schema import Config
from mlxsup.protocol.generation import Priority

OPERATOR = 0
"""The client that gives the commands, and never leaves."""


class _Frozen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    pass


class Fault(StrEnum):
    """What a worker does to those who trust it."""

    DIE = "die"
    STUCK = "stuck"
    """Its MLX thread finishes nothing any more, while its heartbeats go on."""
    MUTE = "mute"
    STOPPED = "stopped"
    """Mute, and the kernel says so; SIGCONT makes it go on."""
    GARBAGE = "garbage"
    TORN = "torn"
    CLOSE_OUTPUT = "close_output"
    CLOSE_INPUT = "close_input"


class When(StrEnum):
    AGE = "age"
    LOAD = "load"
    GENERATE = "generate"
    TOKEN = "token"
    CANCEL = "cancel"
    TOLD = "told"
    """It was told to end."""


class Cause(_Frozen, frozen=True):
    """How a process ends, what it writes to stderr before, and whether the kernel ended it for want of memory."""

    returncode: int
    words: str = ""
    for_memory: bool = False


class Ill(_Frozen, frozen=True):
    """`after_s` behind the `nth` time that it happens to the worker."""

    fault: Fault
    when: When
    nth: int = 1
    after_s: float = 0.0
    cause: Cause = Cause(returncode=-9)


class Fate(_Frozen, frozen=True):
    """Of one worker, in the order in which they are spawned; whoever is spawned later is well."""

    spawn_fails: bool = False
    spawn_s: float = 0.0
    hello_s: float = 0.5
    load_s: float = 1.0
    token_s: float = 0.1
    text_lag_tokens: int = 0
    obeys_sigterm: bool = True
    outlives_sigkill: bool = False
    """The kernel holds it, as in a driver; it never ends."""
    ends_when_told_s: float = 0.0
    refuses_load: bool = False
    answers_load_with_nonsense: bool = False
    ill: Ill | None = None


class Poison(_Frozen, frozen=True):
    """A request with this prompt ends each worker that is about to compute the token at `position`."""

    prompt: str
    position: int
    cause: Cause


REFUSED = "refused"
"""Workers refuse a request whose prompt begins so."""


class Ask(_Frozen, frozen=True, tag="ask"):
    """A request for text. `key` is its name in the history."""

    key: str
    model: str
    prompt: str
    max_tokens: int
    stream: bool = True
    temperature: float = 0.0
    seed: int | None = None
    resume: bool = True
    priority: Priority | None = None
    deadline_ms: int | None = None
    client: str | None = None


class Question(_Frozen, frozen=True, tag="question"):
    """Any other request."""

    key: str
    method: str
    params: dict[str, Any]


class Send(_Frozen, frozen=True, tag="send"):
    """More than one in one JSON-RPC batch."""

    client: int
    calls: tuple[Ask | Question, ...]


class Cancel(_Frozen, frozen=True, tag="cancel"):
    client: int
    key: str


class Leave(_Frozen, frozen=True, tag="leave"):
    """The client closes both directions."""

    client: int


class EndInput(_Frozen, frozen=True, tag="end_input"):
    """The client asks for nothing more, and reads on."""

    client: int


class Strike(_Frozen, frozen=True, tag="strike"):
    """Befalls the newest worker of the model, or the newest spare when there is none."""

    model: str
    fault: Fault
    cause: Cause


class Terminate(_Frozen, frozen=True, tag="terminate"):
    """SIGTERM to the supervisor."""


Act = Send | Cancel | Leave | EndInput | Strike | Terminate


class Timed(_Frozen, frozen=True):
    at_s: float
    act: Act


class Reaction(_Frozen, frozen=True):
    """`act`, so long after the `nth` entry of the history whose `trigger` is `on`."""

    on: str
    nth: int
    after_s: float
    act: Act


class Shortage(_Frozen, frozen=True):
    """Memory that something else takes, in bytes."""

    from_s: float
    to_s: float
    taken_bytes: int


class Schedule(_Frozen, frozen=True):
    """`calm_s`: from then on nothing bad happens any more. `ends_midway`: it is shut down by one of its acts.

    `blameless`: workers die by themselves only in ways that no request can have caused.
    """

    seed: int
    config: Config
    clients: int
    slow_clients: tuple[int, ...]
    resident_bytes: dict[str, int]
    shortages: tuple[Shortage, ...]
    panics: int
    """That the machine has had lately when the supervisor starts."""
    disk_s: float
    disk_fails: bool
    locate_fails: tuple[int, ...]
    """Which look-ups of a model's folder end with a refusal, counted from one."""
    fates: tuple[Fate, ...]
    poisons: tuple[Poison, ...]
    acts: tuple[Timed, ...]
    reactions: tuple[Reaction, ...]
    blameless: bool
    calm_s: float
    ends_midway: bool
    drain_ms: int | None
    hurry_after_s: float | None
    """A second shutdown, without draining, so long after the first."""

    @property
    def asks(self) -> dict[str, Ask]:
        return {call.key: call for call in self._calls if isinstance(call, Ask)}

    @property
    def questions(self) -> dict[str, Question]:
        return {call.key: call for call in self._calls if isinstance(call, Question)}

    @property
    def _calls(self) -> list[Ask | Question]:
        acts = [*(timed.act for timed in self.acts), *(reaction.act for reaction in self.reactions)]
        return [call for act in acts if isinstance(act, Send) for call in act.calls]

    @property
    def poison_prompts(self) -> frozenset[str]:
        return frozenset(poison.prompt for poison in self.poisons)
