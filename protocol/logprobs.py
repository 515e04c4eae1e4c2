"""Logprobs of many tokens, kept as the JSON text that they are sent as. Pure.

As objects those of an answer of a thousand tokens can take ten megabytes, and a tenth of a second to be written.
"""

from collections.abc import Iterable, Sequence
from typing import overload

import msgspec

from mlxsup.protocol.generation import TokenLogprob
from mlxsup.protocol.jsonrpc import JsonText

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[TokenLogprob]).decode


def encode_entries(entries: Iterable[TokenLogprob]) -> bytes:
    """With commas between them, as `EncodedLogprobs` takes them: two such texts with a comma between are one more."""
    return b",".join(map(_encode, entries))


class EncodedLogprobs(JsonText, Sequence[TokenLogprob]):
    """Reads as a list of them does, and is decoded for it each time: to be sent on, not to be worked with."""

    def __init__(self, entries: bytes) -> None:
        self.json = b"[%b]" % entries

    def __len__(self) -> int:
        return len(_decode(self.json))

    @overload
    def __getitem__(self, index: int) -> TokenLogprob: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[TokenLogprob]: ...

    def __getitem__(self, index: int | slice) -> TokenLogprob | Sequence[TokenLogprob]:
        return _decode(self.json)[index]
