"""Files of stretches, made without a model."""

from mlxsup.worker.engine.prefixes.file import Label, Tensor, encode
from mlxsup.worker.engine.prefixes.stretches import Beginnings, Tokens, as_tokens

IDENTITY = "this model"


def tokens_of(text: str) -> Tokens:
    return as_tokens(map(ord, text))


def label_of(text: str, start: int = 0, *, key: str = "", identity: str = IDENTITY) -> Label:
    tokens = tokens_of(text)
    return Label(identity, Beginnings(key, tokens).digest(start), start, tokens[start:], False, None)


def tensors_of(text: str) -> list[Tensor]:
    """Keys and values that only this text has."""
    numbers = text.encode() * 4
    return [
        Tensor("F32", (1, len(text)), memoryview(numbers)),
        Tensor("BF16", (len(text), 2, 1), memoryview(numbers[::-1])),
    ]


def file_of(text: str, start: int = 0, *, identity: str = IDENTITY) -> bytes:
    return b"".join(
        bytes(piece) for piece in encode(label_of(text, start, identity=identity), tensors_of(text))
    )
