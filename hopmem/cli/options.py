"""The options that commands share, and how their text is read."""

import math
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal

import typer

import hopmem
from hopmem.cli.group import VERBOSE
from hopmem.errors import UsageError


def parse_size(text: str) -> tuple[int, int]:
    """Read WxH.

    Returns:
        (width, height).

    Raises:
        BadParameter: something else.
    """
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise typer.BadParameter(f"expected WxH such as 32x32, found {text!r}")
    return int(width), int(height)


def parse_beta(text: Any) -> float | str:
    """Read an inverse temperature, or auto.

    Returns:
        The number, or auto.
    """
    return "auto" if text == "auto" else parse_number(float, 0, 1e30, "auto or a number")(text)


def parse_number(
    kind: type[int] | type[float], least: float = -math.inf, most: float = math.inf, what: str | None = None
) -> Callable[[Any], int | float]:
    """Read a number in a range, and say what was found where it is none.

    Returns:
        A parser for an option.
    """
    words = what or ("a whole number" if kind is int else "a number")
    span = f" from {least:g}" if least > -math.inf else ""
    span += f" to {most:g}" if most < math.inf else ""

    def parse(text: Any) -> int | float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most and not (math.isnan(number) and str(text).lower() == "nan" and not span):
            raise typer.BadParameter(f"expected {words}{span}, found {str(text)!r}")
        return number

    return parse


def parse_share(text: Any) -> float:
    """Read a share as 0.95, 95 or 95%: what is above 1 is percent.

    Returns:
        A number from 0 to 1.

    Raises:
        BadParameter: something else.
    """
    digits = str(text).strip().removesuffix("%")
    try:
        number = Decimal(digits)  # decimal, since 97.3% of a thousand is 973
        number /= 100 if number > 1 or str(text).strip().endswith("%") else 1
    except InvalidOperation:
        number = Decimal(-1)
    if not 0 <= number <= 1:
        raise typer.BadParameter(f"expected a share from 0 to 1, or a percentage up to 100, found {str(text)!r}")
    return float(number)


def split_names(texts: list[str] | None) -> list[str] | None:
    """Read lists such as `a,b` that may be given more than once.

    Returns:
        The names; None where none was given.
    """
    return None if not texts else [name.strip() for text in texts for name in text.split(",")]


def split_counts(texts: list[str] | None) -> list[int] | None:
    """Read lists of whole numbers such as `10,50`.

    Returns:
        The numbers; None where none was given.

    Raises:
        UsageError: something else.
    """
    names = split_names(texts)
    try:
        return None if names is None else [int(name) for name in names]
    except ValueError as error:
        found = ",".join(texts or [])
        raise UsageError(f"--sizes: expected whole numbers such as 10,50, found {found!r}") from error


def show_version(wanted: bool) -> None:
    """Print the version and leave.

    Raises:
        Exit: always, where it is wanted.
    """
    if wanted:
        typer.echo(f"hopmem {hopmem.__version__}")
        raise typer.Exit


def remember_verbose(ctx: typer.Context, verbose: bool) -> bool:
    """Tell the group whether to show tracebacks.

    Returns:
        The flag.
    """
    ctx.meta[VERBOSE] = verbose
    return verbose


Bank = Annotated[str, typer.Argument(help="The bank, a .safetensors file made by hopmem store.", metavar="BANK")]
Sources = Annotated[
    list[str] | None, typer.Argument(help="Arrays, tables, images, folders; - is stdin.", metavar="SOURCE...")
]
Queries = Annotated[list[str] | None, typer.Argument(help="As the sources of store; - is stdin.", metavar="QUERY...")]
ListFile = Annotated[
    list[str] | None, typer.Option("-T", "--files-from", help="A file with one source a line.", metavar="FILE")
]
Key = Annotated[str | None, typer.Option(help="The array of an .npz, .safetensors or .pt.")]
IdColumn = Annotated[str | None, typer.Option(help="The column of a table that names the rows: header or number.")]
Format = Annotated[
    Literal["npy", "npz", "csv", "tsv", "safetensors", "pt", "idx", "image"] | None,
    typer.Option("--format", help="The kind of what comes on stdin."),
]
LayoutOption = Annotated[
    Literal["HW", "HWC", "CHW", "flat"] | None, typer.Option("--layout", help="Axes of a row of an array, if in doubt.")
]
Size = Annotated[
    Any,
    typer.Option("--size", parser=parse_size, help="Resize images to this; queries follow the bank.", metavar="WxH"),
]
Mode = Annotated[Literal["L", "RGB"] | None, typer.Option("--mode", help="Read images as grey (L) or colour (RGB).")]
OnBad = Annotated[
    Literal["error", "skip"], typer.Option("--on-bad", help="What an unusable row or image does; skip ends in exit 7.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that stand in the way.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", envvar="HOPMEM_DEVICE")]
Seed = Annotated[
    int | None,
    typer.Option(
        parser=parse_number(int, 0, 2**63 - 1),
        help="Makes every draw repeatable; default: the bank's, or 0.",
        envvar="HOPMEM_SEED",
        metavar="INTEGER",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        parser=parse_number(int, 1, 4096), help="Processor threads to use.", envvar="HOPMEM_THREADS", metavar="INTEGER"
    ),
]
MemoryLimit = Annotated[
    str | None, typer.Option(help="Working memory, such as 2G.", envvar="HOPMEM_MEMORY_LIMIT", metavar="SIZE")
]
UnpackLimit = Annotated[
    str | None,
    typer.Option(
        "--unpack-limit",
        help="Refuse compressed files and images that unpack to more; default: 1G.",
        envvar="HOPMEM_UNPACK_LIMIT",
        metavar="SIZE",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", envvar="HOPMEM_JSON")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.", envvar="HOPMEM_QUIET")]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", callback=remember_verbose, help="Show tracebacks.", envvar="HOPMEM_VERBOSE")
]
Alpha = Annotated[
    float | None,
    typer.Option(
        parser=parse_number(float, 1, 1e6),
        help="1 softmax, 1.5, 2 sparsemax, any from 1 up; default: the bank's.",
        envvar="HOPMEM_ALPHA",
        metavar="NUMBER",
    ),
]
Beta = Annotated[
    Any,
    typer.Option(
        parser=parse_beta,
        help="Inverse temperature; auto: what the separation asks for.",
        envvar="HOPMEM_BETA",
        metavar="auto|X",
    ),
]
