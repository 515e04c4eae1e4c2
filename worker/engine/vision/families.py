"""How the kinds of models that see want their pictures: what mlx-vlm's processors do, without MLX, one picture at a time."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from mlxsup.worker.engine.vision.sight import Seen

Encode = Callable[[str], list[int]]


class Family(Protocol):
    """`token` stands for a picture in what the model's own code is given."""

    token: int

    def mark(self, number: int) -> str:
        """What stands for the picture of that number, from 1, in a prompt's text."""
        ...

    def split(self, text: str, encode: Encode) -> list[list[int]]:
        """The tokens of a prompt's text, in pieces: a picture is between two of them. Raises ValueError for marks out of order."""
        ...

    def size(self, width: int, height: int) -> int:
        """How many tokens a picture of that size has."""
        ...

    def see(self, picture: Image.Image) -> Seen: ...


class _OneToken:
    """A picture is one token of the vocabulary, in the text and behind the template."""

    token: int

    def split(self, text: str, encode: Encode) -> list[list[int]]:
        pieces: list[list[int]] = [[]]
        for token in encode(text):
            if token == self.token:
                pieces.append([])
            else:
                pieces[-1].append(token)
        return pieces


class Llava(_OneToken):
    def __init__(self, folder: Path, config: Any) -> None:
        from mlx_vlm.models.llava.processing_llava import LlavaProcessor

        processor = LlavaProcessor.from_pretrained(folder, trust_remote_code=False)
        self._processor = processor.image_processor
        self._mark: str = processor.image_token
        self.token = int(config.image_token_index)
        self._patch = int(processor.patch_size or config.vision_config.patch_size)
        # The tower's own token is no part of the picture.
        self._extra = 0 if config.vision_feature_select_strategy == "default" else 1
        self._tokens = self.see(Image.new("RGB", (8, 8))).tokens

    def mark(self, number: int) -> str:  # noqa: ARG002
        return f"{self._mark}\n"

    def size(self, width: int, height: int) -> int:  # noqa: ARG002  (all are brought to one size)
        return self._tokens

    def see(self, picture: Image.Image) -> Seen:
        pixels = np.asarray(self._processor(images=[picture], return_tensors="np")["pixel_values"])
        height, width = pixels.shape[-2:]
        tokens = (height // self._patch) * (width // self._patch) + self._extra
        return Seen(tokens, {"pixel_values": pixels})


class QwenVL(_OneToken):
    def __init__(self, folder: Path, config: Any) -> None:
        from mlx_vlm.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

        processor = Qwen2VLProcessor.from_pretrained(folder, trust_remote_code=False)
        self._processor = processor.image_processor
        self._mark: str = processor.image_token
        self.token = int(config.image_token_id)

    def mark(self, number: int) -> str:  # noqa: ARG002
        return f"<|vision_start|>{self._mark}<|vision_end|>"

    def size(self, width: int, height: int) -> int:
        return int(self._processor.num_image_tokens(height, width))

    def see(self, picture: Image.Image) -> Seen:
        found = self._processor([picture])
        arrays = {name: np.asarray(found[name]) for name in ("pixel_values", "image_grid_thw")}
        return Seen(self.size(*picture.size), arrays)


class Phi3V:
    # Below zero is what its code looks for.
    token = -1
    _MARK: ClassVar = re.compile(r"<\|image_(\d{1,4})\|>")

    def __init__(self, folder: Path, config: Any) -> None:  # noqa: ARG002
        from mlx_vlm.models.phi3_v.processing_phi3_v import Phi3VProcessor

        self._processor = Phi3VProcessor.from_pretrained(folder, trust_remote_code=False).image_processor

    def mark(self, number: int) -> str:
        return f"<|image_{number}|>\n"

    def split(self, text: str, encode: Encode) -> list[list[int]]:
        # Texts and the numbers between them.
        found = self._MARK.split(text)
        if [int(number) for number in found[1::2]] != list(range(1, len(found) // 2 + 1)):
            raise ValueError("marks of pictures out of order")
        return [encode(piece) for piece in found[::2]]

    def size(self, width: int, height: int) -> int:
        return int(self._processor.calc_num_image_tokens(Image.new("1", (width, height))))

    def see(self, picture: Image.Image) -> Seen:
        pixels, size = self._processor._process_single_image(picture)  # noqa: SLF001
        arrays = {"pixel_values": np.asarray(pixels[None], dtype=np.float32), "image_sizes": np.array([size])}
        return Seen(self.size(*picture.size), arrays)


FAMILIES: dict[str, Callable[[Path, Any], Family]] = {
    "llava": Llava,
    "qwen2_vl": QwenVL,
    "qwen2_5_vl": QwenVL,
    "phi3_v": Phi3V,
}
"""By the `model_type` of a model's configuration."""
