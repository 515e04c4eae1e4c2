"""What they are told who want a model that has no worker, and is to have none. Pure."""

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.pool.lifecycle import WorkerState
from mlxsup.supervisor.recovery.aftermath import Aftermath
from mlxsup.supervisor.recovery.memory_truth import Stranded


def stopped_error() -> RpcError:
    return RpcError(ErrorKind.CANCELLED, "the model was unloaded meanwhile", retriable=True)


def stranded_error(stranded: Stranded) -> RpcError:
    """The memory of the last worker has not come back."""
    return RpcError(ErrorKind.MODEL_LOAD_FAILED, str(stranded), retriable=True)


def given_up_error(state: WorkerState, aftermath: Aftermath) -> RpcError:
    """After a death that leaves the model in `state`, which is FAILED or QUARANTINED."""
    if state is WorkerState.FAILED:
        return RpcError(
            ErrorKind.MODEL_LOAD_FAILED, f"the worker can't run: {aftermath.reason}", death=aftermath.death
        )
    return RpcError(
        ErrorKind.CIRCUIT_OPEN,
        f"this model is quarantined, its workers died too often; the last: {aftermath.reason}; load it by hand with "
        "`mlxsup load` when that is mended",
        retriable=False,
        death=aftermath.death,
    )
