"""What is kept of the answers as they go by: records, warnings, and the pictures of the least sure."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hopmem import verbs
from hopmem.bank import SMALLEST, VALIDATED, MemoryBank
from hopmem.patterns import Loaded
from hopmem.pipeline.outcome import SHOWN, Picture
from hopmem.results import Match, RetrieveResult
from hopmem.verbs.retrieve import GIVEN

MOST_PICTURES = 64  # on a contact sheet
BEYOND_WHITE = 8.0  # entries above this are no noisy image from 0 to 1: they were meant from 0 to 255

Emit = Callable[[list[Match]], None]  # told the answers of a block as soon as they are there


class Tally:
    """What has come back so far."""

    def __init__(self, bank: MemoryBank, names: Sequence[str], most: int, emit: Emit | None, *, pictured: bool) -> None:
        """Begin.

        Args:
            bank: what is asked.
            names: of all queries.
            most: answers that are kept.
            emit: told the answers of each block.
            pictured: whether pictures are wanted.
        """
        self.bank, self._names, self._emit, self._most, self._pictured = bank, names, emit, most, pictured
        self.count = 0  # of the queries that were answered
        self._matches: list[Match] = []  # the first of them
        self.pictures: list[Picture] = []  # of the least sure answers, those first
        self._alpha = self._beta = 0.0
        self._beta_source = GIVEN
        self._steps = self._rejected = 0
        self._largest, self._scaled = 0.0, False

    def take(self, rows: slice, X: Tensor, asked: Loaded, answer: verbs.Answer, *, again: bool = False) -> None:
        """Take in the answers of a block.

        Args:
            rows: which of the queries.
            X: they themselves [n, d], NaN where unknown.
            asked: as they were read.
            answer: what came back.
            again: whether a run before this one has told these answers.
        """
        self.count = rows.stop
        told = len(answer.match) if self._emit is not None and not again else 0
        kept = min(len(answer.match), self._most - len(self._matches))
        matches = _matches(answer, self._names[rows], self.bank, max(told, kept))
        if self._emit is not None and told:
            self._emit(matches)
        self._matches += matches[:kept]
        self._alpha, self._beta, self._beta_source = answer.alpha, answer.beta, answer.beta_source
        self._steps = max(self._steps, int(answer.steps.max()))
        self._rejected += answer.match.count(None)
        self._largest = max(self._largest, float(X.nan_to_num(0).abs().max()))
        self._scaled = self.bank.scale != 1 and asked.stored.is_floating_point()
        if self._pictured:
            more = _pictures(X, asked.known, answer, self.bank, self._names[rows])
            self.pictures = sorted([*self.pictures, *more], key=lambda each: each.confidence)[:MOST_PICTURES]

    @property
    def result(self) -> RetrieveResult:
        """All answers that were kept."""
        return RetrieveResult(self._alpha, self._beta, self._steps, self._matches, more=self.count - len(self._matches))

    @property
    def warnings(self) -> list[str]:
        """What a user may not expect of these queries and answers."""
        found = []
        if self._scaled and self._largest > BEYOND_WHITE:
            reach = f"queries reach {self._largest:g}, where the bank's images run from 0 to 1"
            found.append(f"{reach}: scale them alike")
        if self._beta_source not in {GIVEN, SMALLEST, VALIDATED}:
            found.append(f"β {self._beta:.6g}: {self._beta_source}")
        if self._rejected:
            count = f"{self._rejected} of {len(self._names)} answers are rejected"
            found.append(f"{count}; what is written for them is no match")
        return found


def _matches(answer: verbs.Answer, names: Sequence[str], bank: MemoryBank, most: int) -> list[Match]:
    """Answers as records.

    Returns:
        One for each of the first queries.
    """
    first = slice(most)
    several = answer.top_index.shape[1] > 1
    columns = zip(
        names[first],
        answer.match[first],
        answer.index[first].tolist(),
        answer.confidence[first].tolist(),
        answer.margin[first].tolist(),
        answer.support[first].tolist(),
        answer.state[first],
        answer.steps[first].tolist(),
        answer.converged[first].tolist(),
        answer.energy[first].tolist(),
        strict=True,
    )
    matches = [Match(*each) for each in columns]
    if not several:
        return matches
    tops = zip(matches, answer.top_index[first].tolist(), answer.top_weight[first].tolist(), strict=True)
    for match, indices, weights in tops:
        best = zip(indices, weights, strict=True)
        match.top.extend({"match": bank.names[m], "index": m, "weight": w} for m, w in best)
    return matches


def _pictures(
    X: Tensor, known: Tensor | None, answer: verbs.Answer, bank: MemoryBank, names: Sequence[str]
) -> list[Picture]:
    """What a contact sheet shows of a block, the least sure answers first.

    Returns:
        A picture for each of at most `MOST_PICTURES` queries.
    """
    rows = answer.confidence.argsort(stable=True)[:MOST_PICTURES]
    stored = bank.rows()
    return [
        Picture(
            query=_shown(X[row].nan_to_num(0), bank),
            known=None if known is None else _shown(known[row], bank),
            answer=_shown(answer.patterns[row], bank),
            stored=_shown(stored[answer.index[row : row + 1]][0], bank),
            name=names[row],
            match=answer.match[row],
            confidence=float(answer.confidence[row]),
        )
        for row in rows.tolist()
    ]


def _shown(row: Tensor, bank: MemoryBank) -> Tensor:
    """A pattern as it is drawn: large ones would take more memory than the bank.

    Args:
        row: entries from 0 to 1, or which of them are known [d].
        bank: what shape they have.

    Returns:
        uint8 or bool [H, W] or [H, W, C].
    """
    pixels = row.reshape(bank.shape)
    planes = pixels if bank.layout == "CHW" else pixels.movedim(-1, 0) if pixels.ndim == 3 else pixels[None]
    shrink = min(1.0, *(most / size for most, size in zip(SHOWN, planes.shape[1:], strict=True)))
    if shrink < 1:
        size = [max(1, round(side * shrink)) for side in planes.shape[1:]]
        planes = interpolate(planes[None].float(), size, mode="bilinear", antialias=True)[0]
    drawn = planes > 1 / 2 if row.dtype == torch.bool else planes.clamp(0, 1).mul(255).round().byte()
    return drawn[0] if pixels.ndim == 2 else drawn.movedim(0, -1)
