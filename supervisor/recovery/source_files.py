"""Which names are files of installed packages, so that a report may keep them. Edge.

Nothing of the packages is imported.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path


def is_source_file(name: str) -> bool:
    """Of a name such as `mlx_lm/generate.py` or `threading.py`."""
    package = name.partition("/")[0].removesuffix(".py")
    try:
        return any((root / name).is_file() for root in _roots(package))
    except OSError:
        return False


@cache
def _roots(package: str) -> tuple[Path, ...]:
    spec = find_spec(package)
    if spec is None:
        return ()
    places = spec.submodule_search_locations or [spec.origin or ""]
    return tuple(Path(place).parent for place in places)
