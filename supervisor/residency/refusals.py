"""What a client is told whose model finds no memory. Pure."""

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.supervisor.residency.ledger import Ledger


def too_large(needed_bytes: int, ledger: Ledger) -> RpcError:
    bound = (
        "are the budget for models; raise `memory.budget_bytes`, or take"
        if ledger.has_budget
        else "is all that this machine can give; take"
    )
    return RpcError(
        ErrorKind.MODEL_LOAD_FAILED,
        f"the model needs about {megabytes(needed_bytes)} of memory, and {megabytes(ledger.capacity_bytes)} {bound} a "
        "smaller or more quantized model, or lower its `kv_bytes_max`",
        retriable=False,
    )


def no_room(needed_bytes: int, attainable_bytes: int, staying: list[str]) -> RpcError:
    """`staying`: models that are not put out for it."""
    names = ", ".join(f"`{name}`" for name in staying)
    return RpcError(
        ErrorKind.MODEL_LOAD_FAILED,
        f"the model needs about {megabytes(needed_bytes)} of memory, and beside {names}, which stay loaded, at most "
        f"{megabytes(max(0, attainable_bytes))} could be free; unload one of them",
        retriable=True,
    )


def megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
