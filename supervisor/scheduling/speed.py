"""How fast a model computes under load, from what its steps give. Pure.

While requests wait, the time between steps is spent on their prompts and on their answers. What a token of either takes is
the exponentially weighted least-squares fit of `seconds = prompt_s * prompt tokens + answer_s * answer tokens` over
stretches of about a second (recursive least squares with forgetting: Haykin, Adaptive Filter Theory, chapter 10), drawn a
little towards a usual ratio, since a load that never changes its mix does not say which took the time.
"""

import math

_STRETCH_S = 1.0
# Longer without a step is a wait for something else, such as another worker.
_GAP_S_MAX = 10.0
_FORGETTING = 0.95
# A prompt's token beside an answer's, where nothing is known.
_USUAL_RATIO = 0.125
_RATIO_MIN = 1 / 64
_PULL = 0.002
_SMOOTHING = 0.05


class Speed:
    """For one model, whichever worker computes it."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._last_s = -math.inf
        self._prompt_tokens = 0
        self._answer_tokens = 0
        # Weighted sums of products: prompt and answer tokens with each other and with seconds.
        self._pp = self._pa = self._aa = self._pt = self._at = 0.0
        self._prompt_s = self._answer_s = 0.0
        self._step_s: float | None = None

    @property
    def is_known(self) -> bool:
        return self._answer_s > 0.0

    @property
    def step_s(self) -> float:
        """Between two tokens of one answer, smoothed; 0.0 when nothing is known."""
        return self._step_s or 0.0

    @property
    def ratio(self) -> float:
        """What a token of a prompt takes, in tokens of answers."""
        if not self.is_known:
            return _USUAL_RATIO
        return min(1.0, max(_RATIO_MIN, self._prompt_s / self._answer_s))

    def seconds(self, cost_tokens: float) -> float:
        """That the model needs for so much, at full load; 0.0 when nothing is known."""
        return cost_tokens * self._answer_s

    def note_step(self, prompt_tokens: int, answer_tokens: int, now_s: float, *, loaded: bool) -> None:
        """A step has come, with the first tokens of prompts that long and so many tokens in all.

        `loaded`: the batch was full since the step before.
        """
        gap_s = now_s - self._last_s
        if gap_s > _GAP_S_MAX:
            self.rest()
        elif gap_s > 0.0:
            before = gap_s if self._step_s is None else self._step_s
            self._step_s = before + _SMOOTHING * (gap_s - before)
        self._last_s = now_s
        if not loaded:
            self._since_s = None
            return
        if self._since_s is None:
            # From here on; what this step brought was computed before.
            self._since_s = now_s
            self._prompt_tokens = self._answer_tokens = 0
            return
        self._count(prompt_tokens, answer_tokens, now_s, self._since_s)

    def note_embedded(self, prompt_tokens: int, now_s: float, *, loaded: bool) -> None:
        """So many tokens of texts have been read that get no answer. `loaded`: requests waited for their end."""
        if not loaded:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now_s
            self._prompt_tokens = self._answer_tokens = 0
        else:
            self._count(prompt_tokens, 0, now_s, self._since_s)

    def _count(self, prompt_tokens: int, answer_tokens: int, now_s: float, since_s: float) -> None:
        self._prompt_tokens += prompt_tokens
        self._answer_tokens += answer_tokens
        if now_s - since_s >= _STRETCH_S:
            self._learn(now_s - since_s)
            self._since_s = now_s
            self._prompt_tokens = self._answer_tokens = 0

    def rest(self) -> None:
        """Nothing is computed for a while."""
        self._since_s = None
        self._last_s = -math.inf

    def _learn(self, seconds: float) -> None:
        p, a = float(self._prompt_tokens), float(self._answer_tokens)
        if not (p or a):
            return
        self._pp = _FORGETTING * self._pp + p * p
        self._pa = _FORGETTING * self._pa + p * a
        self._aa = _FORGETTING * self._aa + a * a
        self._pt = _FORGETTING * self._pt + p * seconds
        self._at = _FORGETTING * self._at + a * seconds
        # (prompt_s - usual * answer_s)² is added with this weight.
        pull = _PULL * (self._pp + self._aa)
        pp, pa = self._pp + pull, self._pa - pull * _USUAL_RATIO
        aa = self._aa + pull * _USUAL_RATIO**2
        determinant = pp * aa - pa * pa
        prompt_s = (self._pt * aa - self._at * pa) / determinant
        answer_s = (self._at * pp - self._pt * pa) / determinant
        if prompt_s < 0.0 or answer_s <= 0.0:
            # All of the time for the one that is left.
            prompt_s, answer_s = 0.0, self._at / self._aa
        self._prompt_s, self._answer_s = prompt_s, answer_s
