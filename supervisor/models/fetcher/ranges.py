"""What an answer to a request for (the rest of) a file means. Pure."""

import re
from enum import Enum

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Answer(Enum):
    APPEND = "the rest follows"
    REWRITE = "the whole file follows"
    START_OVER = "something else follows: ask for the whole file"
    OTHER_FILE = "the server has a file of another length"


def judge(
    *, have: int, total: int, status: int, content_range: str | None, content_length: int | None
) -> Answer:
    """Judge an answer by its status and headers.

    Args:
        have: bytes already here; if there are any, they were named in the request's Range.
        total: bytes of the whole file, known beforehand.
        status: of the answer, 2xx.
        content_range: the header, if there was one.
        content_length: the header as a number, if there was one.
    """
    if status != 206:
        # A server may ignore Range and send it all.
        return Answer.REWRITE if content_length in (None, total) else Answer.OTHER_FILE
    match = _CONTENT_RANGE.fullmatch(content_range or "")
    if match is None or int(match[1]) != have:
        return Answer.START_OVER
    if match[3] not in ("*", str(total)) or int(match[2]) >= total:
        return Answer.OTHER_FILE
    return Answer.APPEND
