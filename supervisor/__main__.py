"""`python -P -m mlxsup.supervisor`: the command line, for this very installation."""

from mlxsup.supervisor.cli import main

if __name__ == "__main__":
    main()
