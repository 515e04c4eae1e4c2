"""What a sequence may say, as the batch sees it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Constraint(Protocol):
    """Of one sequence, for the MLX thread. Its state follows from the tokens that it has accepted."""

    def allowed(self, tokens_left: int) -> npt.NDArray[np.uint32] | None:
        """Bits of the tokens that may come next, [ceil(vocabulary / 32)]: bit t % 32 of word t // 32; None: any.

        With so many tokens left for the answer, the next one among them, what follows can come to its end in time. End
        tokens are among them where the text is complete, and only there.
        """
        ...

    def forced(self) -> list[int]:
        """The tokens that come next whatever is sampled, often none. They are not accepted yet."""
        ...

    def accept(self, tokens: Sequence[int]) -> None: ...


class Grammar(Protocol):
    """Compiled once, for all sequences that it binds."""

    def start(self, delivered: Sequence[int]) -> Constraint:
        """For a sequence whose answer begins with these tokens."""
        ...
