"""What a worker says of itself is bounded, since the supervisor computes with it."""

from typing import Any

import msgspec
import pytest

from mlxsup.protocol.worker_link import Heartbeat, Loaded, LoadProgress

BEAT = {
    "phase": "batch",
    "work": 1,
    "still_s": 0.0,
    "sequences": 1,
    "active_bytes": 0,
    "cache_bytes": 0,
    "peak_bytes": 0,
    "prefill_tokens": 1,
    "prefill_tokens_per_s": 1.0,
}
LOADED = {
    "model_type": "m",
    "context_tokens": 1,
    "weights_bytes": 1,
    "vocabulary_tokens": 1,
    "load_s": 0.1,
}
PROGRESS = {"phase": "weights", "bytes_done": 1, "bytes_total": 1}


@pytest.mark.parametrize(
    ("shape", "good", "key"),
    [
        (shape, good, key)
        for shape, good in ((Heartbeat, BEAT), (Loaded, LOADED), (LoadProgress, PROGRESS))
        for key, value in good.items()
        if not isinstance(value, str)
    ],
)
@pytest.mark.parametrize("number", [b"-1", b"1" + b"0" * 4000, b"1e400", b"NaN", b"9007199254740994"])
def test_a_number_that_no_worker_can_mean_breaks_the_protocol(
    shape: type[Any], good: dict[str, Any], key: str, number: bytes
) -> None:
    msgspec.json.decode(msgspec.json.encode(good), type=shape)
    bad = msgspec.json.encode({**good, key: msgspec.Raw(number)})

    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(bad, type=shape)
