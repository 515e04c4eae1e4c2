"""The engine for models that see: images of conversations into pictures, and pictures into the prompts of the batch.

A picture is looked at between two steps of the others, one at a time; its prompt is read once all of its are.
"""

from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from PIL import Image

from mlxsup.protocol.errors import ErrorKind, RpcError
from mlxsup.protocol.generation import ImagePart, ImageUrl, Message, TextPart
from mlxsup.protocol.worker_link import Generate, Load, Loaded
from mlxsup.worker.engine.codec import ShowContent, TextCodec
from mlxsup.worker.engine.draft import DraftModel
from mlxsup.worker.engine.features import ABLE, refuse_unsupported
from mlxsup.worker.engine.interface import Emission, IsWanted, Prepared
from mlxsup.worker.engine.member import Member
from mlxsup.worker.engine.text import TextEngine, too_long
from mlxsup.worker.engine.vision.families import FAMILIES
from mlxsup.worker.engine.vision.images import Limits, Place, find_images, read_images
from mlxsup.worker.engine.vision.reading import read_sighted_model
from mlxsup.worker.engine.vision.sight import Seen, Sight, SightedModel

_PROBE = "mlxsup"


class VisionEngine(TextEngine):
    able = ABLE["vision"]
    read_model = staticmethod(read_sighted_model)

    def __init__(
        self, model: nn.Module, codec: TextCodec, loaded: Loaded, order: Load, draft: DraftModel | None
    ) -> None:
        assert isinstance(model, SightedModel)
        super().__init__(model, codec, loaded, order, draft)
        self._sighted = model
        config: Any = model.sighted.config
        self._family = FAMILIES[loaded.model_type](Path(order.model_path), config)
        self._limits = Limits(order.images_max, order.image_bytes_max, order.image_pixels_max)
        self._takes_parts = self._does_template_take_parts()
        # Those whose pictures are not all looked at yet, and whether the others are to have a step first.
        self._looking: list[Member] = []
        self._has_looked = False

    def prepare(self, request: Generate) -> Prepared:
        refuse_unsupported(request, self.able)
        if not any(find_images(request.messages or ())):
            return self._checked(request, self._prompt_tokens(request))
        tokens, sight = self._lay_out(request, read_images(request.messages or (), self._limits))
        return self._checked(request, tokens, sight)

    def _lay_out(self, request: Generate, images: list[tuple[Place, Image.Image]]) -> tuple[list[int], Sight]:
        """The prompt's tokens, with as many of no meaning for each picture as it has, and what is to be seen there."""
        pieces = self._split(self._text(request))
        if len(pieces) != len(images) + 1:
            raise RpcError(
                ErrorKind.INVALID_PARAMS,
                "a text of `$.messages` has the model's own mark for an image; leave it out",
                path="$.messages",
            )
        context = self.loaded.context_tokens
        needed = sum(map(len, pieces)) + sum(self._size(place, image) for place, image in images)
        if needed >= context:
            raise too_long(f"{needed} tokens, with those of its images,", context)
        token = self._family.token if 0 <= self._family.token < self.loaded.vocabulary_tokens else 0
        tokens, places, pictures, digest = list(pieces[0]), [], [], blake2b(digest_size=16)
        for (place, image), piece in zip(images, pieces[1:], strict=True):
            digest.update(f"{image.size}".encode() + image.tobytes())
            picture = self._see(place, image)
            places.append(len(tokens))
            pictures.append(picture)
            tokens += [token] * picture.tokens + piece
        return tokens, Sight(pictures=pictures, places=places, digest=digest.hexdigest())

    def _split(self, text: str) -> list[list[int]]:
        try:
            return self._family.split(text, lambda piece: self.codec.encode(piece, special=False))
        except ValueError:
            return []

    def _size(self, place: Place, image: Image.Image) -> int:
        try:
            return self._family.size(*image.size)
        except (ValueError, ArithmeticError) as error:
            raise _no_picture(place, error) from error

    def _see(self, place: Place, image: Image.Image) -> Seen:
        try:
            return self._family.see(image)
        except (ValueError, ArithmeticError) as error:
            raise _no_picture(place, error) from error

    # What templates get.

    def _show(self) -> ShowContent:
        return _as_parts if self._takes_parts else self._as_text()

    def _as_text(self) -> ShowContent:
        numbers = count(1)

        def show(message: Message) -> str:
            if message.content is None or isinstance(message.content, str):
                return message.content or ""
            return "".join(
                part.text if isinstance(part, TextPart) else self._family.mark(next(numbers))
                for part in message.content
            )

        return show

    def _does_template_take_parts(self) -> bool:
        """Or only text, and the marks for pictures are to stand in it."""
        image = ImagePart(ImageUrl("data:,"))
        message = Message(role="user", content=[image, TextPart(_PROBE)])
        try:
            text = self.codec.render_chat([message], show=_as_parts)
        except (RpcError, TypeError, ValueError, LookupError, AttributeError):
            return False
        return _PROBE in text and len(self._split(text)) == 2

    # In the batch.

    def _enter(self, member: Member) -> None:
        sight = member.sight
        if sight is not None and sight.positions is None:
            self._sighted.count(sight, member.tokens[: member.prompt_tokens])
        if sight is None or member.cached >= sight.end or sight.embeddings is not None:
            super()._enter(member)
        else:
            self._looking.append(member)

    def _take_out(self, id: int, *, goes_on: bool) -> Emission:
        self._looking = [member for member in self._looking if member.id != id]
        return super()._take_out(id, goes_on=goes_on)

    @property
    def prefill_tokens(self) -> int:
        sight = self._next_sight()
        return super().prefill_tokens if sight is None else sight.pictures[len(sight.looked)].tokens

    def step(self, is_wanted: IsWanted) -> list[Emission] | None:
        sight = self._next_sight()
        if sight is not None:
            self._has_looked = True
            return self._look(self._looking[0], sight)
        emissions = super().step(is_wanted)
        if emissions is not None:
            self._has_looked = False
            for running in self._running.values():
                seen = running.member.sight
                if seen is not None and running.member.cached >= seen.end:
                    # They are in the caches now.
                    seen.embeddings, seen.looked = None, []
        return emissions

    def _next_sight(self) -> Sight | None:
        """Of whom a picture is looked at with this step."""
        if not self._looking or (self._has_looked and len(self._running) > len(self._looking)):
            return None
        self._looking.sort(key=lambda member: member.turn)
        return self._looking[0].sight

    def _look(self, member: Member, sight: Sight) -> list[Emission]:
        try:
            looked = self._sighted.look(sight.pictures[len(sight.looked)], self._family.token)
            mx.eval(looked)
        except ValueError as error:
            # The picture's own fault, or the model's: the others go on.
            self._take_out(member.id, goes_on=False)
            failure = RpcError(
                ErrorKind.INTERNAL, "the model's code can't take one of the images of `$.messages`"
            )
            failure.add_note(str(error))
            return [Emission(member.id, "", [], error=failure)]
        sight.looked.append(looked)
        if len(sight.looked) == len(sight.pictures):
            sight.embeddings = self._sighted.assemble(sight, member.tokens)
            mx.eval(sight.embeddings)
            mx.clear_cache()
            sight.looked = []
            self._looking.remove(member)
            self._batch.add(member)
        return []


def _as_parts(message: Message) -> Any:
    """All of a message in parts: a template that looks for them finds none in a text."""
    if message.content is None:
        return ""
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}]
    return [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
        for part in message.content
    ]


def _no_picture(place: Place, error: Exception) -> RpcError:
    failure = RpcError(
        ErrorKind.INVALID_PARAMS, f"`{place.path}` is no picture that this model takes", path=place.path
    )
    failure.add_note(str(error))
    return failure
