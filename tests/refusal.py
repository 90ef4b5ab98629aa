"""What every refusal has to keep: a documented exit code and one line that names the facts."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hopmem.errors import HopmemError


@contextmanager
def raises_refusal(code: int, *facts: str) -> Iterator[None]:
    with pytest.raises(HopmemError) as caught:
        yield
    message = str(caught.value)
    assert caught.value.exit_code == code, message
    assert "\n" not in message
    assert [fact for fact in facts if fact not in message] == [], message
