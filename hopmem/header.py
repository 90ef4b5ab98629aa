"""The header of a bank, read without its tensors, and without torch."""

import json
from pathlib import Path

LONGEST = 100_000_000  # bytes that the format allows a header


def metadata(path: str | Path) -> dict[str, str]:
    """What the header of a safetensors file says beside the tensors.

    Args:
        path: the file.

    Returns:
        Names and texts; nothing where the file is not whole, which who opens it will say better.
    """
    try:
        with Path(path).open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= LONGEST else {}
        kept = header.pop("__metadata__", {})
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        whole = Path(path).stat().st_size == 8 + length + end
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return {}
    return kept if whole and isinstance(kept, dict) else {}
