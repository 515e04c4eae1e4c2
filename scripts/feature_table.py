"""The table of features by engine, generated into README from what the engines themselves refuse by. Edge."""

import sys
from pathlib import Path

from mlxsup.worker.engine.features import ABLE, FEATURES

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN = "<!-- features: written by scripts/features --write -->\n"
END = "<!-- end of features -->\n"


def make_table() -> str:
    engines = sorted(ABLE)
    lines = [
        f"| | parameter | {' | '.join(f'{engine} models' for engine in engines)} |",
        "| --- | --- |" + " --- |" * len(engines),
    ]
    for feature in FEATURES:
        able = " | ".join("yes" if feature in ABLE[engine] else "refused" for engine in engines)
        lines.append(f"| {feature.name} | `{feature.path}` | {able} |")
    return "\n".join(lines) + "\n"


def with_table(readme: str) -> str:
    """Raises ValueError where README has lost its place for it."""
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(
            f"README.md has no place for the table: put {BEGIN.strip()} and {END.strip()} into it"
        )
    return f"{before}{BEGIN}{make_table()}{END}{after}"


def main() -> None:
    if sys.argv[1:] == ["--write"]:
        README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    elif sys.argv[1:]:
        sys.exit("scripts/features [--write]: prints the table of features, or writes it into README.md")
    else:
        sys.stdout.write(make_table())


if __name__ == "__main__":
    main()
