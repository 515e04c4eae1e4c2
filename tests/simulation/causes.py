"""How workers end by themselves in schedules, and what each of them means. Pure."""

from mlxsup.supervisor.recovery.classify import Evidence, classify
from mlxsup.supervisor.recovery.signal_origin import read_origin
from mlxsup.supervisor.recovery.verdicts import Verdict
from tests.fakes.memory_worker import SIGNAL_KEY
from tests.simulation.schedule import Cause

CAUSES: tuple[Cause, ...] = (
    Cause(returncode=-9),
    Cause(returncode=-9, for_memory=True),
    Cause(returncode=-11, words=f"mlxsup: signal 11 sent by process 0 ({SIGNAL_KEY})\n"),
    Cause(returncode=-15),
    Cause(returncode=75),
    Cause(returncode=78),
    Cause(returncode=71),
    Cause(returncode=1),
    Cause(returncode=0),
    Cause(returncode=69, words="Traceback (most recent call last):\nKeyError: 'x'\n"),
    Cause(returncode=70, words="[METAL] Command buffer execution failed: Internal Error (0000000e:x)\n"),
    Cause(returncode=-11),
    Cause(returncode=-6),
    Cause(returncode=-7),
    Cause(returncode=-4),
    Cause(returncode=70, words="[METAL] Command buffer execution failed: Insufficient Memory (00000008:x)"),
    Cause(returncode=-6, words="libc++abi: terminating: [malloc] Unable to allocate 123 bytes.\n"),
    Cause(
        returncode=70,
        words="[METAL] Command buffer execution failed: Discarded (victim of GPU error/recovery) (00000005:x)",
    ),
    Cause(
        returncode=-6,
        words="[METAL] Command buffer execution failed: Ignored (for causing prior/excessive GPU errors) (00000004:x)",
    ),
    Cause(returncode=70, words="RuntimeError: [metal::malloc] Resource limit (499000) exceeded.\n"),
    Cause(returncode=69, words="ModuleNotFoundError: No module named 'mlx_lm'\n"),
    Cause(returncode=64),
)


def meaning(cause: Cause) -> Verdict:
    """What the supervisor should make of it."""
    lines = tuple(cause.words.splitlines())
    evidence = Evidence(
        returncode=cause.returncode,
        stderr=lines,
        phase="ready",
        origin=next((origin for line in lines if (origin := read_origin(line, SIGNAL_KEY))), None),
        killed_for_memory=cause.for_memory,
    )
    return classify(evidence)


BLAMELESS: tuple[Cause, ...] = tuple(cause for cause in CAUSES if not meaning(cause).blames_request)
BLAMING: tuple[Cause, ...] = tuple(cause for cause in CAUSES if meaning(cause).blames_request)
