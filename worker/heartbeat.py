"""Reports what the MLX thread last finished, from a thread of its own."""

import threading
import time

from mlxsup.protocol.jsonrpc import encode_notification
from mlxsup.protocol.worker_link import HEARTBEAT, Heartbeat
from mlxsup.worker.outbox import Outbox
from mlxsup.worker.vitals import Vitals


def start_heartbeat(vitals: Vitals, outbox: Outbox, interval_s: float) -> None:
    def beat() -> None:
        while True:
            time.sleep(interval_s)
            mark = vitals.read()
            preparing_since_s = vitals.preparing_since_s
            now_s = time.monotonic()
            report = Heartbeat(
                phase=mark.phase,
                work=mark.work,
                still_s=max(0.0, now_s - mark.at_s),
                sequences=mark.sequences,
                active_bytes=mark.active_bytes,
                cache_bytes=mark.cache_bytes,
                peak_bytes=mark.peak_bytes,
                prefill_tokens=mark.prefill_tokens,
                prefill_tokens_per_s=mark.prefill_tokens_per_s,
                preparing_s=0.0 if preparing_since_s is None else max(1e-6, now_s - preparing_since_s),
            )
            outbox.send_heartbeat(encode_notification(HEARTBEAT, report))

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()
