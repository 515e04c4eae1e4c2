"""Which ids a client has sent, as another JSON parser reads them: the more lenient one, of the standard library."""

import json
from collections import Counter
from typing import Any

_DIGITS_MAX = 4000
_DECODER = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < _DIGITS_MAX else 0)


def ids_sent(frame: bytes) -> Counter[tuple[type, Any]]:
    """Each with its type, since 1 is not "1"; none of what can't be read at all."""
    try:
        value = _DECODER.decode(frame.decode("utf-8"))
    except (ValueError, RecursionError):
        return Counter()
    items = value if isinstance(value, list) else [value]
    ids = [item.get("id") for item in items if isinstance(item, dict)]
    return Counter((type(id), id) for id in ids if isinstance(id, int | str))
