"""What the verbs find, as plain records: what the report shows, and what a bank may remember of itself.

Nothing here needs torch, so that what is remembered can be shown at once.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class StoreResult:
    """What was stored."""

    bank: str
    patterns: int
    dimension: int
    shape: list[int]
    dtype: str
    duplicates: list[list[str]]  # groups of equal patterns, by name
    bytes: int
    estimate: "StoreEstimate | None" = None  # of a dry run


@dataclass(frozen=True)
class StoreEstimate:
    """What storing would take, by what reading took and what measuring a part of the patterns takes."""

    seconds: float  # of reading, measuring, and of writing to a disk that is as fast as checksums are made
    bytes: int  # of memory at the peak


@dataclass(frozen=True)
class OptimizeResult:
    """What was learned."""

    objective: str
    feature_dimension: int
    steps: int
    loss: dict[str, float]  # first (the raw patterns) and last
    separation: dict[str, dict[str, float]]  # raw and learned
    validation: list[dict[str, Any]]  # of everything that was tried: noise, method, accuracy and error
    kept: Literal["learned", "raw"]
    method: str | None  # the map that is in the bank, in words, where it was chosen among several


@dataclass(frozen=True)
class Match:
    """The answer to one query."""

    query: str
    match: str | None  # None where it was rejected
    index: int
    confidence: float
    margin: float
    support: int
    state: str
    steps: int
    converged: bool
    energy: float
    top: list[dict[str, Any]] = field(default_factory=list)  # the memories of the largest weights, where asked for


@dataclass(frozen=True)
class Estimate:
    """What a run would take, by what a few of its queries took."""

    queries: int
    seconds: float
    bytes: int  # of memory at the peak, beside the bank, which stays on the disk and is mapped


@dataclass(frozen=True)
class RetrieveResult:
    """What came back."""

    alpha: float
    beta: float
    steps: int  # the most that any query took
    results: list[Match]
    estimate: Estimate | None = None  # of a dry run
    more: int = 0  # answers beyond those listed, where not all were asked for


@dataclass(frozen=True)
class SeparationReport:
    """Δ and angles of one set of unit features; None where one pattern has no neighbour."""

    min: float | None  # smallest Δ_μ
    mean: float | None  # mean Δ_μ
    quantiles: dict[str, float] | None  # of Δ_μ
    max_cosine: float | None  # of the closest pair
    min_angle_degrees: float | None  # of the closest pair
    radius: float | None  # R_Φ = ½ min δ_μν
    effective_rank: float | None = None  # e^{entropy of the shares of the singular values}; None where D and M are huge
    worst: "list[Placed]" = field(default_factory=list)  # the patterns of smallest Δ, the worst first


@dataclass(frozen=True)
class Placed:
    """How far one pattern lies from the others."""

    name: str
    delta: float  # Δ_μ
    nearest: str  # the pattern that lies closest
    exact: bool = False  # whether it is an exact fixed point (Theorem 2); never at α = 1


@dataclass(frozen=True)
class BoundsReport:
    """What theory promises of the bank as it is; None where it says nothing."""

    lower: float | None  # least that the best Δ_min of M points in D dimensions can be (U-Hop+, Prop. 3.1)
    upper: float | None  # most that it can be
    lemma1_error: float | None  # Lemma 1 as published at the bank's β; None where it overflows
    error: float | None  # the sharp bound at the bank's β and r = R_Φ/2
    beta_for_error: float | None  # the β that suffices for the wanted error at r = R_Φ/2
    guaranteed_radius: float  # the largest r at which the sharp bound keeps the wanted error at the bank's β
    exact_fraction: float  # share of patterns that are exact fixed points (Theorem 2); 0 at α = 1
    optimum: float | None = None  # the best Δ_min itself, where theory knows it
    reached: float | None = None  # share of the optimum, or else of the least bound, that the smallest Δ is
    delta_for_exact: float | None = None  # Δ from which on a pattern is an exact fixed point; None at α = 1


@dataclass(frozen=True)
class ClosePair:
    """Two patterns that lie close in the map that is in force."""

    a: str
    b: str
    cosine: float


@dataclass(frozen=True)
class StoredReport:
    """Which patterns are stored in the sense of Definition 3, as far as runs of the dynamics can tell."""

    tested: int  # patterns that were run
    fraction: float  # of those, whose every run came to rest within R_Φ of the pattern
    lost: list[str]  # names of up to ten of the others


@dataclass(frozen=True)
class SelfTest:
    """How the bank did on its own patterns."""

    noise: list[str]  # that the patterns suffered; none: they were put as they are
    queries: int
    accuracy: float  # share of queries whose largest weight was on their own pattern, or on a copy of it


@dataclass(frozen=True)
class Appended:
    """What patterns that came after the learning did to the map."""

    learned_from: int  # patterns
    appended: int
    delta_before: float  # smallest Δ when the map was learned
    delta_now: float
    closer: int  # appended patterns whose Δ is smaller than any was then


@dataclass(frozen=True)
class LearningReport:
    """How the map that is in force was learned."""

    steps: int  # of gradient descent beyond the warm start
    temperature: float | None  # t of the average loss
    batch_size: int | None  # patterns in a step
    seed: int
    loss: dict[str, float]  # first (the raw patterns) and last


@dataclass(frozen=True)
class Inspection:
    """The statistics of a bank."""

    patterns: int
    dimension: int
    shape: list[int]
    feature_dimension: int
    objective: str
    separation: dict[Literal["raw", "learned"], SeparationReport | None]
    bounds: BoundsReport
    closest_pairs: list[ClosePair]
    duplicates: list[list[str]]
    metastable: dict[str, int]  # stored patterns as queries: how many memories share the answer
    learning: LearningReport | None  # None in a raw bank
    stored: StoredReport | None = None  # None of a single pattern
    self_test: SelfTest | None = None  # what `metastable` counts
    appended: Appended | None = None  # None where nothing was
    alpha: float = 1.0  # of Theorem 2, the runs and the self-test
    beta: float = 0.0  # at which they and the bounds were evaluated
    raw_bounds: BoundsReport | None = None  # what theory promises of the raw patterns, where a map was learned
    verified: bool | None = None  # whether every byte is what was written; None where nobody asked


@dataclass(frozen=True)
class Remembered:
    """Statistics that a bank keeps, and what was asked for."""

    inspection: Inspection
    error: float  # ε that the bounds were solved for
    alpha: float
    beta: float  # at which they were evaluated
    seed: int  # of the self-test
    device: str

    def text(self) -> str:
        """As the header of a bank holds it.

        Returns:
            JSON.
        """
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, kept: Any) -> "Remembered":
        """What `text` gave.

        Args:
            kept: that text, read as JSON.

        Returns:
            The statistics.

        Raises:
            ValueError: something else.
        """
        try:
            plain = kept["inspection"]
            sides = {name: side and _side(side) for name, side in plain["separation"].items()}
            records = {
                "separation": sides,
                "bounds": BoundsReport(**plain["bounds"]),
                "raw_bounds": plain["raw_bounds"] and BoundsReport(**plain["raw_bounds"]),
                "closest_pairs": [ClosePair(**pair) for pair in plain["closest_pairs"]],
                "learning": plain["learning"] and LearningReport(**plain["learning"]),
                "stored": plain["stored"] and StoredReport(**plain["stored"]),
                "self_test": plain["self_test"] and SelfTest(**plain["self_test"]),
                "appended": plain["appended"] and Appended(**plain["appended"]),
            }
            return cls(**kept | {"inspection": Inspection(**plain | records)})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no statistics of a bank: {error}") from error


def _side(plain: dict[str, Any]) -> SeparationReport:
    """A separation from JSON.

    Returns:
        The report.
    """
    return SeparationReport(**plain | {"worst": [Placed(**each) for each in plain["worst"]]})


@dataclass(frozen=True)
class Row:
    """How one method fares under one noise, with one number of patterns."""

    noise: str
    method: str
    size: int  # patterns
    accuracy: float  # share of queries whose largest weight is on their own pattern, or on a copy of it
    accuracy_se: float  # a standard error, as the other two
    error: float  # mean over queries of the sum over entries of the squared difference of readout and clean pattern
    error_se: float  # NaN of a single query
    metastable: float  # share of queries whose answer is not a single pattern's
    metastable_se: float
    beta: float | None  # None where the method has none
    samples: int  # queries


@dataclass(frozen=True)
class Evaluation:
    """How methods fare under noises and with numbers of patterns."""

    rows: list[Row]
