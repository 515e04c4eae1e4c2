"""What a model may be called. Pure.

A request names a configured model, a built-in alias or a hub id: words of a narrow alphabet that can't be a
path. A folder is named by the operator only, in the configuration's `source` or on the command line, and
shows that it is one by how it begins.
"""

import re
from collections.abc import Container
from pathlib import Path

import msgspec

from mlxsup.protocol.errors import ErrorKind, RpcError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_FOLDER_BEGINNINGS = ("/", "./", "../", "~/")
_FOLDERS = (".", "..", "~")


class Alias(msgspec.Struct, frozen=True):
    """A model that mlxsup knows by itself; `name` is a key of `aliases.ALIASES`."""

    name: str


class HubId(msgspec.Struct, frozen=True):
    """A repository on the Hugging Face hub, `owner/name` or `name`."""

    name: str


class Folder(msgspec.Struct, frozen=True):
    """A folder of the operator's, as written: absolute or beginning with `./`, `../` or `~/`."""

    path: str

    def locate(self, *, base: Path, home: Path) -> Path:
        """The path: `~/` is below `home`, else a relative one is below `base`, the configuration's folder."""
        if self.path == "~" or self.path.startswith("~/"):
            return home / self.path[2:]
        return base / self.path


Pullable = Alias | HubId
Source = Alias | HubId | Folder


def check_name(text: str, *, path: str | None = "$.model") -> str:
    """`text`, if a model may be called so in a request.

    Args:
        text: what was given.
        path: the JSON path of the parameter, for the error.

    Raises:
        RpcError: INVALID_PARAMS.
    """
    if _looks_like_a_folder(text):
        raise _invalid(
            "cannot use a folder as the model of a request: give the name of a configured model, an alias "
            "or a hub id; a folder is named in the configuration, as `source`",
            path,
        )
    # The hub itself refuses these two; here they also keep `a/b--c` and `a--b/c` apart in the store.
    if not _NAME.fullmatch(text) or ".." in text or "--" in text:
        raise _invalid(
            f"cannot use {text[:200]!r} as a model's name: letters, digits, `_`, `.` and `-`, at most 96, "
            "beginning with a letter or a digit, without `..` or `--`; a hub id has two such parts with a "
            "`/` between",
            path,
        )
    return text


def parse_pullable(text: str, *, aliases: Container[str], path: str | None = "$.model") -> Pullable:
    """What `model/pull` is asked for: an alias, else a hub id.

    Raises:
        RpcError: INVALID_PARAMS, as `check_name`.
    """
    name = check_name(text, path=path)
    return Alias(name) if name in aliases else HubId(name)


def parse_source(text: str, *, aliases: Container[str]) -> Source:
    """A `source` of the configuration, or a model on the command line.

    Raises:
        RpcError: INVALID_PARAMS, without a path: the caller knows where it read the text.
    """
    if not _looks_like_a_folder(text):
        return parse_pullable(text, aliases=aliases, path=None)
    if "\0" in text or (text.startswith("~") and text not in _FOLDERS and not text.startswith("~/")):
        raise _invalid(f"cannot use {text[:200]!r} as a folder: write it in full, or begin with `~/`", None)
    return Folder(text)


def _looks_like_a_folder(text: str) -> bool:
    return text in _FOLDERS or text.startswith((*_FOLDER_BEGINNINGS, "~"))


def _invalid(message: str, path: str | None) -> RpcError:
    return RpcError(ErrorKind.INVALID_PARAMS, message, path=path)
