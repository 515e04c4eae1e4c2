"""Which files of a hub repository are pulled. Pure."""

import re
from collections.abc import Mapping

from mlxsup.supervisor.models import folder_rules
from mlxsup.supervisor.models.fetcher.faults import cannot_pull

# Of the top level only: subfolders hold other formats of the same weights. The exception says how an embedding model pools.
# No pickle and no .py is ever among them.
_WANTED = re.compile(
    r"[\w.-]+\.(safetensors|json|jinja|tiktoken)|tokenizer\.model|spiece\.model|merges\.txt|vocab\.txt|1_Pooling/config\.json",
    re.ASCII,
)


def choose_files(sizes: Mapping[str, int]) -> dict[str, int]:
    """Those of the repository's files that a loader reads, with their sizes in bytes.

    Raises:
        RpcError: there are no weights in safetensors, or no configuration: refused before anything is
            downloaded.
    """
    if "config.json" not in sizes:
        raise cannot_pull(
            "its repository has no config.json, so it isn't a model that mlx-lm or mlx-vlm loads"
        )
    try:
        weights = set(folder_rules.weight_files([name for name in sizes if "/" not in name]))
    except ValueError as error:
        raise cannot_pull(str(error).partition(": ")[2]) from None
    return {
        name: size
        for name, size in sizes.items()
        if _WANTED.fullmatch(name) and (not name.endswith(".safetensors") or name in weights)
    }
