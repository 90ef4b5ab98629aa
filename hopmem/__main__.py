"""`python -m hopmem` and the `hopmem` command."""

import sys

INTERRUPTED = 130  # as in hopmem.errors, which may not be there yet


def main() -> None:
    """Run the command line."""
    try:
        from hopmem.cli import app
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    app()


if __name__ == "__main__":
    main()
