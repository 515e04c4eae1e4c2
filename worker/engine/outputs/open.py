"""Which parts an answer's text has."""

from mlxsup.protocol.worker_link import Generate
from mlxsup.worker.engine.codec import TextCodec
from mlxsup.worker.engine.outputs.stream import OutputStream


def open_output(_request: Generate, _codec: TextCodec, _prompt_tokens: list[int]) -> OutputStream | None:
    """None: it is all text of the answer."""
    return None
