"""What to do next with a bank, in plain words, from its statistics alone."""

import math

from hopmem.errors import printable
from hopmem.results import ClosePair, Inspection

MOST = 6  # sentences; more of them nobody reads
LETTERS = 60  # of a name
ALIKE = 0.95  # cosine from which on two patterns are hard to tell apart
GOOD = 0.99  # share of the self-test that is right in a bank that does well
BLENDED = 0.01  # share of the self-test whose answers may be blends


def advice(inspection: Inspection) -> list[str]:
    """What to do next.

    Args:
        inspection: the statistics of a bank.

    Returns:
        One to six pieces of advice with their reasons, the most important first.
    """
    if inspection.patterns < 2:
        return ["The bank holds a single pattern, which answers every query: add others with hopmem store --append."]
    found = [
        *_duplicates(inspection),
        *_lost(inspection),
        *_missed(inspection),
        *_appended(inspection),
        *_raw(inspection),
        *_alike(inspection),
        *_blended(inspection),
        *_no_radius(inspection),
    ]
    return found[:MOST] or ["Nothing needs to be done: the patterns lie apart, and each is found from its own query."]


def _duplicates(result: Inspection) -> list[str]:
    """Equal patterns.

    Returns:
        What to do about them.
    """
    if not result.duplicates:
        return []
    first, more = result.duplicates[0], len(result.duplicates) - 1
    names = _and([_quoted(name) for name in first[:3]] + ([f"{len(first) - 3:,} more"] if len(first) > 3 else []))
    others = f" ({_count(more, 'other group')} like them)" if more else ""
    return [f"{names} are equal{others}: a query can never tell them apart; store one of them."]


def _lost(result: Inspection) -> list[str]:
    """Patterns that the dynamics do not hold.

    Returns:
        What to do about them.
    """
    held = result.stored
    if held is None or held.fraction >= 1:
        return []
    some = f", {_and([_quoted(name) for name in held.lost[:3]])} among them" if held.lost else ""
    share = _percent(1 - held.fraction, up=True)
    return [
        f"{share} of the {held.tested:,} patterns that were run are not stored (Definition 3){some}: runs that start "
        f"next to them end elsewhere; {_beta(result) or 'move the closest patterns apart'}."
    ]


def _missed(result: Inspection) -> list[str]:
    """A self-test that went badly.

    Returns:
        What to do about it.
    """
    test = result.self_test
    if test is None or test.accuracy >= GOOD:
        return []
    noise = f"under {printable(', '.join(test.noise))}" if test.noise else "on the patterns as they are"
    remedy = "" if result.learning is None else "learn again for the noise you expect, or "
    return [
        f"The self-test {noise} finds only {_percent(test.accuracy)} of {test.queries:,} queries: "
        f"{remedy}let hopmem retrieve --min-confidence reject the answers that are unsure."
    ]


def _appended(result: Inspection) -> list[str]:
    """Patterns that came after the learning and lie closer than any did.

    Returns:
        What to do about them.
    """
    came = result.appended
    if came is None or not came.closer:
        return []
    lie = "lies" if came.closer == 1 else "lie"
    return [
        f"{came.closer:,} of the {came.appended:,} patterns that were appended {lie} closer to another than any did "
        "when the map was learned: run hopmem optimize again."
    ]


def _raw(result: Inspection) -> list[str]:
    """No map yet.

    Returns:
        How to learn one.
    """
    if result.separation.get("learned") is not None or result.objective != "raw":
        return []
    return [
        "No map is learned: run hopmem optimize BANK --noise KIND:LEVEL for the noise you expect, such as mask:0.5; "
        "the raw patterns are kept where no map does better."
    ]


def _alike(result: Inspection) -> list[str]:
    """Pairs that lie close without being equal.

    Returns:
        What to do about them.
    """
    equal = [set(group) for group in result.duplicates]
    close = [pair for pair in result.closest_pairs if pair.cosine >= ALIKE and not _among(pair, equal)]
    if not close:
        return []
    more = len(close) - 1
    others = f", and {_count(more, 'other pair')} at least {100 * ALIKE:.0f} %" if more else ""
    return [
        f"{_quoted(close[0].a)} and {_quoted(close[0].b)} are {_percent(close[0].cosine)} alike{others}: queries "
        "between them will be unsure; leave one out if both mean the same, or learn a map that moves them apart."
    ]


def _blended(result: Inspection) -> list[str]:
    """Answers that several patterns share.

    Returns:
        What to do about them.
    """
    total = sum(result.metastable.values())
    shared = total - result.metastable.get("1", 0)
    if not total or shared / total <= BLENDED:
        return []
    cure = _beta(result) or "let hopmem retrieve --min-confidence reject those that are unsure"
    return [f"In the self-test {_percent(shared / total)} of the answers are blends of several patterns: {cure}."]


def _no_radius(result: Inspection) -> list[str]:
    """No distance from which theory promises the answer; where patterns are equal none can be promised.

    Returns:
        What to do about it.
    """
    cure = _beta(result)
    if result.bounds.guaranteed_radius > 0 or result.duplicates or not cure:
        return []
    return [f"Theory guarantees the answer to no query at this β, however close it starts: {cure}."]


def _beta(result: Inspection) -> str:
    """The β that suffices.

    Returns:
        How to raise it, or nothing where none suffices, or it is as large already.
    """
    beta = result.bounds.beta_for_error
    if beta is None or result.duplicates or not result.beta < beta < math.inf:
        return ""
    return f"raise β to {beta:.6g} (hopmem retrieve --beta)"


def _among(pair: ClosePair, groups: list[set[str]]) -> bool:
    return any(pair.a in group and pair.b in group for group in groups)


def _quoted(name: str) -> str:
    text = printable(name[: LETTERS + 1])  # a name of a million letters is not escaped in full
    return f"`{text if len(text) <= LETTERS else text[: LETTERS - 1] + '…'}`"


def _and(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _percent(share: float, *, up: bool = False) -> str:
    """A share in percent, rounded towards the side that does not flatter: 99.96 % are not all.

    Returns:
        At most one decimal.
    """
    tenths = math.ceil(1000 * share - 1e-9) if up else math.floor(1000 * share + 1e-9)
    return f"{tenths / 10:g} %"
