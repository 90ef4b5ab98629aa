"""`python -m hopmem` and the `hopmem` command."""

import sys
from io import TextIOWrapper

from hopmem.cli import app


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Greek gets escapes, not an error
    app()


if __name__ == "__main__":
    main()
