"""`python -m hopmem` and the `hopmem` command."""

from hopmem.cli import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
