"""What the fetcher's own children get to see. Edge."""

import os

_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def child_environment() -> dict[str, str]:
    """The environment without the hub's tokens: neither pip nor the conversion has a use for them."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS}
