"""What clients send as images: good ones become pictures, and bad ones are refused by their place, each for its reason."""

import io
from collections.abc import Callable

import pytest

pytest.importorskip("PIL", reason="Pillow comes with mlxsup[vision]")

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import ImagePart, ImageUrl, Message, TextPart
from mlxsup.worker.engine.vision.images import Limits, find_images, read_images
from tests.unit.vision.bombs import BOMBS, png, uri

LIMITS = Limits(images_max=8, bytes_max=100_000, pixels_max=1_000_000)
SIZE = (12, 7)


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    image = Image.new("RGB", size, (200, 30, 60))
    image.putpixel((0, 0), (0, 255, 0))
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def conversation(*urls: str) -> list[Message]:
    """The images are the second and further parts of the second message."""
    parts: list[TextPart | ImagePart] = [TextPart("look"), *(ImagePart(ImageUrl(url)) for url in urls)]
    return [Message(role="system", content="s"), Message(role="user", content=parts)]


def read(url: str, limits: Limits = LIMITS) -> Image.Image:
    ((place, image),) = read_images(conversation(url), limits)
    assert place.path == "$.messages[1].content[1]"
    return image


def refusal(url: str, limits: Limits = LIMITS) -> RpcError:
    with pytest.raises(RpcError) as raised:
        read(url, limits)
    assert raised.value.data.path == "$.messages[1].content[1]"
    assert raised.value.message.startswith("`$.messages[1].content[1]`")
    return raised.value


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_each_format_becomes_a_picture_whatever_it_is_called(kind: str) -> None:
    data = encoded(picture(), kind)
    for name in (f"image/{kind.lower()}", "image/jpeg", "application/octet-stream", ""):
        image = read(uri(data, name))
        assert image.size == SIZE
        assert image.mode == "RGB"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "I;16"])
def test_whatever_its_colours_are_they_are_told_as_red_green_and_blue(mode: str) -> None:
    assert read(uri(encoded(Image.new(mode, SIZE), "PNG"))).mode == "RGB"


def test_a_picture_that_lies_on_its_side_is_put_up() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read(uri(encoded(picture(), "JPEG", exif=exif))).size == SIZE[::-1]


def test_one_image_more_than_are_allowed_is_refused_at_its_place() -> None:
    url = uri(encoded(picture(), "PNG"))
    assert len(read_images(conversation(*[url] * 8), LIMITS)) == 8
    with pytest.raises(RpcError) as raised:
        read_images(conversation(*[url] * 9), LIMITS)

    assert raised.value.kind is ErrorKind.LIMIT_EXCEEDED
    assert raised.value.data.path == "$.messages[1].content[9]"


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.png",
        "HTTP://example.org/a.png",
        "file:///etc/passwd",
        "ftp://example.org/a.png",
        "data:image/png,%89PNG",
        uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "text/html"),
    ],
)
def test_nothing_is_fetched_and_no_other_type_is_taken(url: str) -> None:
    error = refusal(url)

    assert error.kind is ErrorKind.UNSUPPORTED
    assert "example.org" not in error.message
    assert "passwd" not in error.message


@pytest.mark.parametrize(
    "url", ["", "a.png", "/etc/passwd", "data:image/png;base64,%%%", "data:image/png;base64"]
)
def test_what_is_no_data_uri_is_refused(url: str) -> None:
    assert refusal(url).kind is ErrorKind.INVALID_PARAMS


@pytest.mark.parametrize(
    "data",
    [
        b"this is a text and no picture",
        b"",
        b"\x00" * 100,
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        encoded(picture(), "BMP"),
        encoded(picture(), "TIFF"),
        encoded(picture((16, 16)), "ICO"),
    ],
    ids=["text", "nothing", "zeros", "svg", "bmp", "tiff", "ico"],
)
def test_a_file_that_is_none_of_the_formats_is_refused_whatever_it_is_called(data: bytes) -> None:
    assert refusal(uri(data)).kind is ErrorKind.INVALID_PARAMS


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    noise = Image.effect_noise((60, 60), 90).convert("RGB")
    data = encoded(noise, kind)

    assert refusal(uri(data[: int(len(data) * share)])).kind is ErrorKind.INVALID_PARAMS


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_a_decompression_bomb_is_refused_by_its_size_before_anything_is_decoded(
    make: Callable[[], bytes],
) -> None:
    error = refusal(uri(make()))

    assert error.kind is ErrorKind.LIMIT_EXCEEDED
    assert "pixels" in error.message


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    data = encoded(picture(), "JPEG", progressive=True)
    at = data.index(b"\xff\xda")
    assert refusal(uri(data[:at] + b"\xff\xda\x00\x00" * 200 + data[at:])).kind is ErrorKind.LIMIT_EXCEEDED


@pytest.mark.parametrize("size", [(1001, 1000), (1_000_001, 1)])
def test_more_pixels_than_are_allowed_are_refused(size: tuple[int, int]) -> None:
    assert refusal(uri(png(*size, b""))).kind is ErrorKind.LIMIT_EXCEEDED


@pytest.mark.parametrize("size", [(101, 1), (2, 202)])
def test_a_picture_that_is_a_line_is_refused(size: tuple[int, int]) -> None:
    assert refusal(uri(encoded(Image.new("RGB", size), "PNG"))).kind is ErrorKind.INVALID_PARAMS


def test_a_file_of_more_bytes_than_are_allowed_is_refused() -> None:
    data = encoded(picture(), "PNG")
    exact = Limits(images_max=1, bytes_max=len(data), pixels_max=1000)
    less = Limits(images_max=1, bytes_max=len(data) - 1, pixels_max=1000)

    assert read(uri(data), exact).size == SIZE
    assert refusal(uri(data), less).kind is ErrorKind.LIMIT_EXCEEDED


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_no_picture_is_chosen(kind: str) -> None:
    frames = [Image.new("RGB", SIZE, (shade, 0, 0)) for shade in (0, 100, 200)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])

    assert refusal(uri(data)).kind is ErrorKind.UNSUPPORTED


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=20),
)
def test_a_damaged_file_gives_a_picture_or_a_refusal_and_nothing_else(
    kind: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(encoded(Image.effect_noise((20, 20), 60).convert("RGB"), kind))
    for at, value in changes:
        data[at % len(data)] = value
    error: RpcError | None = None
    try:
        image = read(uri(bytes(data)))
    except RpcError as refused:
        error = refused
    if error is None:
        assert image.width * image.height <= LIMITS.pixels_max
    else:
        assert error.data.path == "$.messages[1].content[1]"


def test_images_are_found_where_they_are() -> None:
    places = [place.path for place, _ in find_images(conversation("a", "b"))]
    assert places == ["$.messages[1].content[1]", "$.messages[1].content[2]"]
