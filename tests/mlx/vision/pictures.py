"""Pictures as clients send them."""

import base64
import io
import random

from PIL import Image

from mlxsup.protocol.generation import ImagePart, ImageUrl


def draw(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Of random colours."""
    chance = random.Random(seed)
    image = Image.new("RGB", size)
    image.putdata(
        [(chance.randrange(256), chance.randrange(256), seed * 40 % 256) for _ in range(size[0] * size[1])]
    )
    return image


def as_uri(image: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def part(seed: int, size: tuple[int, int] = (40, 30), kind: str = "PNG") -> ImagePart:
    return ImagePart(ImageUrl(as_uri(draw(seed, size), kind)))
