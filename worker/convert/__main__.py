"""`python -P -m mlxsup.worker.convert SOURCE.gguf TARGET`: one JSON object on stdout tells the end.

`{"version": 1}` with exit status 0, or `{"refused": "why"}` with exit status 2.
"""

import json
import sys
from pathlib import Path

from mlxsup.worker.convert import VERSION
from mlxsup.worker.convert.folder import convert
from mlxsup.worker.convert.metadata import RefusedError


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -P -m mlxsup.worker.convert SOURCE.gguf TARGET", file=sys.stderr)
        return 64
    source, target = map(Path, arguments)
    try:
        convert(source, target)
    except RefusedError as refusal:
        print(json.dumps({"refused": str(refusal)}))
        return 2
    print(json.dumps({"version": VERSION}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
