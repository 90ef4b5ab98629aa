"""What can go wrong, each with its exit code; an error builds its own message from the facts.

Exit codes: 1 internal, 2 usage, 3 input missing or unreadable, 4 invalid data, 5 device or memory, 6 bank corrupt
or incompatible, 7 finished but some inputs were skipped, 8 quality gate failed, 130 interrupted, 143 terminated.
"""

SKIPPED_SOME = 7
INTERRUPTED, TERMINATED = 130, 143


class Terminated(KeyboardInterrupt):  # no mistake of anybody's
    """Somebody asked the process to end (SIGTERM), as Ctrl-C does."""


class HopmemError(Exception):
    """A mistake that a user can mend: its message is one line that says what was expected, found, and where."""

    exit_code = 1


class UsageError(HopmemError):
    """Options that do not fit one another or the bank."""

    exit_code = 2


class WouldOverwriteError(UsageError):
    """A file stands where the output would go."""

    def __init__(self, path: object) -> None:
        super().__init__(f"{printable(str(path))}: exists already; --force overwrites it")


class MissingInputError(HopmemError):
    """An input that is not there."""

    exit_code = 3

    def __init__(self, path: object, expected: str) -> None:
        super().__init__(f"{printable(str(path))}: expected {expected}, found nothing there")


class UnreadableError(HopmemError):
    """An input that is there but can't be read as what it should be."""

    exit_code = 3

    def __init__(self, path: object, expected: str, found: object) -> None:
        super().__init__(f"{printable(str(path))}: expected {expected}, found {one_line(found)}")


class LockedError(HopmemError):
    """A bank that another process is writing."""

    exit_code = 3

    def __init__(self, path: object, holder: str, seconds: float) -> None:
        where = printable(str(path))
        super().__init__(f"{where}: expected no other writer, found {one_line(holder)} after {seconds:g} s of waiting")


class InvalidDataError(HopmemError):
    """An input that can be read, with content that can't be used."""

    exit_code = 4

    def __init__(self, where: object, expected: str, found: object) -> None:
        super().__init__(f"{printable(str(where))}: expected {expected}, found {one_line(found)}")


class DeviceError(HopmemError):
    """A device that is not there, or that has too little memory."""

    exit_code = 5


class BankError(HopmemError):
    """A bank that is corrupt, or that this version can't read."""

    exit_code = 6

    def __init__(self, path: object, expected: str, found: object) -> None:
        super().__init__(f"{printable(str(path))}: expected {expected}, found {one_line(found)}")


class QualityGateError(HopmemError):
    """A result that is there, but not as good as was asked for."""

    exit_code = 8


def one_line(fact: object) -> str:
    """A fact for a message, on one line and of bounded length.

    Returns:
        The text of `fact` with its white space collapsed, cut at 200 characters.
    """
    text = printable(" ".join(str(fact).split()))
    return text if len(text) <= 200 else text[:197] + "..."


def printable(text: str) -> str:
    """A name or a message that can't upset a terminal.

    Returns:
        The text with control characters and lone surrogates escaped.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
