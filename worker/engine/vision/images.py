"""Images of a conversation: data URIs into pictures. Whatever is in one costs no more than its bounds, and harms nobody."""

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from io import BytesIO

import msgspec
from PIL import Image, ImageOps, UnidentifiedImageError

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import ImagePart, Message

# Of Pillow's names; each has a decoder that is bounded by the picture's size.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_KINDS = "PNG, JPEG, WebP or GIF"
_DATA_URI = re.compile(r"data:([a-zA-Z0-9.+/-]*)((?:;[a-zA-Z0-9=.+_-]*)*),", re.ASCII)
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{0,20}(?=:)")
# Models see pictures as squares or rows of squares, and nothing in what is thinner.
_ASPECT_MAX = 100
# Each pass of a progressive JPEG goes over all of its pixels.
_SCANS_MAX = 100
_START_OF_SCAN = b"\xff\xda"

# Every picture is held to the bound of the configuration, before anything of it is decoded.
Image.MAX_IMAGE_PIXELS = None


class Limits(msgspec.Struct, frozen=True):
    """So many images in one request, each with so many bytes and pixels."""

    images_max: int
    bytes_max: int
    pixels_max: int


class Place(msgspec.Struct, frozen=True):
    """Of an image in a conversation."""

    message: int
    part: int

    @property
    def path(self) -> str:
        return f"$.messages[{self.message}].content[{self.part}]"


def find_images(messages: Sequence[Message]) -> Iterator[tuple[Place, ImagePart]]:
    for index, message in enumerate(messages):
        if isinstance(message.content, list):
            for number, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    yield Place(index, number), part


def read_images(messages: Sequence[Message], limits: Limits) -> list[tuple[Place, Image.Image]]:
    """All images of a conversation, in their order, decoded and in RGB.

    Raises:
        RpcError: LIMIT_EXCEEDED, UNSUPPORTED or INVALID_PARAMS with the path of the first that can't be taken.
    """
    found = list(find_images(messages))
    if len(found) > limits.images_max:
        raise _refused(
            found[limits.images_max][0],
            ErrorKind.LIMIT_EXCEEDED,
            f"is image {limits.images_max + 1}, and a request may have {limits.images_max}; send fewer",
        )
    return [
        (place, _decode(_bytes(part.image_url.url, place, limits), place, limits)) for place, part in found
    ]


def _bytes(url: str, place: Place, limits: Limits) -> bytes:
    head = _DATA_URI.match(url, 0, 200)
    if head is None:
        scheme = _SCHEME.match(url)
        if scheme is not None and scheme[0].lower() != "data":
            what = f"is a URL of the scheme `{scheme[0].lower()}`, and nothing is fetched"
            raise _refused(
                place, ErrorKind.UNSUPPORTED, f"{what}; send the image itself as a data URI in base64"
            )
        raise _refused(place, ErrorKind.INVALID_PARAMS, "is no data URI; send `data:image/png;base64,…`")
    kind, options = head[1].lower(), head[2].lower()
    if kind not in ("", "application/octet-stream") and not kind.startswith("image/"):
        raise _refused(place, ErrorKind.UNSUPPORTED, f"is of the type {kind[:60]}; send an image, {_KINDS}")
    if ";base64" not in options:
        raise _refused(place, ErrorKind.UNSUPPORTED, "is a data URI that is not in base64")
    encoded = len(url) - head.end()
    if encoded // 4 * 3 > limits.bytes_max + 3:
        raise _refused(
            place, ErrorKind.LIMIT_EXCEEDED, f"has more than {limits.bytes_max} bytes; send a smaller image"
        )
    try:
        data = base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise _refused(place, ErrorKind.INVALID_PARAMS, "is not in base64 as it says") from None
    if len(data) > limits.bytes_max:
        raise _refused(
            place, ErrorKind.LIMIT_EXCEEDED, f"has more than {limits.bytes_max} bytes; send a smaller image"
        )
    return data


def _decode(data: bytes, place: Place, limits: Limits) -> Image.Image:
    _check_pixels(_webp_size(data), place, limits)
    if data.startswith(b"\xff\xd8") and data.count(_START_OF_SCAN) > _SCANS_MAX:
        raise _refused(place, ErrorKind.LIMIT_EXCEEDED, f"is a JPEG of more than {_SCANS_MAX} scans")
    try:
        image = Image.open(BytesIO(data), formats=_FORMATS)
        _check_pixels(image.size, place, limits)
        if getattr(image, "is_animated", False):
            raise _refused(place, ErrorKind.UNSUPPORTED, "is animated; send one picture of it")
        image.load()
        return ImageOps.exif_transpose(image).convert("RGB")
    except RpcError:
        raise
    except UnidentifiedImageError:
        raise _refused(place, ErrorKind.INVALID_PARAMS, f"is no {_KINDS}") from None
    except Exception as error:
        raise _refused(
            place, ErrorKind.INVALID_PARAMS, f"can't be decoded: the file is damaged ({type(error).__name__})"
        ) from error


def _check_pixels(size: tuple[int, int] | None, place: Place, limits: Limits) -> None:
    if size is None:
        return
    width, height = size
    if width * height > limits.pixels_max:
        raise _refused(
            place,
            ErrorKind.LIMIT_EXCEEDED,
            f"has {width} by {height} pixels, and {limits.pixels_max} are allowed; send a smaller image",
        )
    if max(size) > _ASPECT_MAX * min(size):
        raise _refused(
            place,
            ErrorKind.INVALID_PARAMS,
            f"has {width} by {height} pixels: one side may be at most {_ASPECT_MAX} times the other",
        )


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """As its header says: WebP's decoder makes room for all of a picture before it can be asked. None for other formats."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
            return width & 0x3FFF, height & 0x3FFF
    return None


def _refused(place: Place, kind: ErrorKind, why: str) -> RpcError:
    return RpcError(kind, f"`{place.path}` {why}", path=place.path)
