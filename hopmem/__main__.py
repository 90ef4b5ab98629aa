"""`python -m hopmem` and the `hopmem` command."""

import os
import sys
from contextlib import suppress

INTERRUPTED = 130  # as in hopmem.errors, which may not be there yet


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: always, with the exit code.
    """
    try:
        from hopmem.cli import app
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    try:
        app()
    except SystemExit as end:
        if "hopmem.cluster" in sys.modules and isinstance(end.code, int):
            _leave(end.code)
        raise


def _leave(code: int) -> None:
    """End at once: what torch.distributed tidies up at the end would wait for processes that may be gone."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # closed
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
