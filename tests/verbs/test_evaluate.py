"""Evaluate: against counts made by hand, under noises whose answers are known, and the same every time."""

import math
from dataclasses import astuple, replace

import pytest
import torch

import hopmem
from hopmem.bank import VALIDATED, MemoryBank
from hopmem.model.noise import canvas_of, parse_noise
from hopmem.verbs import Row
from hopmem.verbs.trial import METHODS, Trial, part
from tests.refusal import raises_refusal
from tests.verbs import randn

CPU = torch.device("cpu")


def bank_of(M: int = 30, d: int = 16, **options) -> MemoryBank:
    return MemoryBank.from_patterns(randn(M, d), **options)


def images(M: int = 20) -> MemoryBank:
    pixels = torch.randint(0, 256, (M, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return replace(MemoryBank.from_patterns(pixels), layout="HW", scale=1 / 255)


def trial_of(bank: MemoryBank, seed: int = 0) -> Trial:
    canvas = canvas_of(bank.rows(), bank.shape, bank.layout)
    return Trial(part(bank, torch.arange(len(bank)), CPU, 1 << 28, None), canvas, seed, CPU, 1 << 28)


def by_method(bank: MemoryBank, noise: str, **options) -> dict[str, Row]:
    options = {"samples": 60} | options
    return {row.method: row for row in hopmem.evaluate(bank, noise=[noise], **options).rows}


@pytest.mark.parametrize("noise", ["mask:0", "missing:0", "gaussian:0"])
def test_without_noise_every_method_that_compares_like_with_like_is_always_right(noise):
    rows = by_method(bank_of(), noise)
    assert set(rows) == set(METHODS)
    for method in set(METHODS) - {"modern", "sparse", "dam10"}:  # a longer pattern has the larger dot product
        assert (rows[method].accuracy, rows[method].accuracy_se) == (1, 0)
        assert rows[method].metastable == 0
        assert rows[method].error < 1e-3
    assert (rows["nearest"].error, rows["nearest"].error_se) == (0, 0)


@pytest.mark.parametrize("noise", ["gaussian:1", "missing:0.5", "mask:0.4+gaussian:0.5"])
def test_methods_that_rank_alike_are_right_alike(noise):
    rows = by_method(bank_of(), noise)
    assert rows["euclidean"].accuracy == rows["nearest"].accuracy
    assert rows["cosine"].accuracy == rows["bank"].accuracy  # of a raw bank
    assert rows["modern"].accuracy == rows["sparse"].accuracy
    assert rows["nearest"].metastable == 0


def test_uhop_is_the_bank_that_optimize_learns_for_the_average():
    bank = bank_of(30, 40)
    learned = hopmem.optimize(bank, objective="average", seed=0)
    for noise in ("gaussian:0.3", "missing:0.5"):
        assert by_method(learned, noise)["bank"].accuracy == by_method(bank, noise)["uhop"].accuracy
        assert by_method(learned, noise)["uhop"].accuracy == by_method(bank, noise)["uhop"].accuracy


@pytest.mark.parametrize("noise", ["gaussian:0.8", "missing:0.6"])
def test_the_figures_of_the_bank_are_those_of_retrieve(noise):
    bank = bank_of()
    row = by_method(bank, noise, samples=300, seed=5)["bank"]
    rows, X = map(
        torch.cat, zip(*trial_of(bank, 5).queries(parse_noise(noise, images=False), 300, "measured"), strict=True)
    )
    answer = hopmem.retrieve(bank, X, snap=False)
    weighted = hopmem.retrieve(replace(bank, values=bank.patterns, values_shape=bank.shape), X).patterns
    error = (weighted - bank.patterns[rows]).square().sum(1)
    right = float((answer.index == rows).float().mean())
    shared = sum(state != "single" for state in answer.state) / 300
    assert row.accuracy == pytest.approx(right, abs=1e-6)
    assert row.accuracy_se == pytest.approx(math.sqrt(right * (1 - right) / 300), abs=1e-6)
    assert row.error == pytest.approx(float(error.mean()), rel=1e-5)
    assert row.error_se == pytest.approx(float(error.std()) / math.sqrt(300), rel=1e-5)
    assert row.metastable == pytest.approx(shared, abs=1e-6)
    assert row.metastable_se == pytest.approx(math.sqrt(shared * (1 - shared) / 300), abs=1e-6)
    assert (row.beta, row.samples, row.size, row.noise) == (answer.beta, 300, 30, noise)


def test_patterns_are_corrupted_equally_often():
    for count, most in ((10, 1), (30, 1), (31, 2), (600, 20)):
        drawn = [rows for rows, _ in trial_of(bank_of()).queries(parse_noise("mask:0.5", images=False), count, "test")]
        times = torch.cat(drawn).bincount(minlength=30)
        assert (int(times.sum()), int(times.max())) == (count, most)
        assert int(times.max() - times.min()) <= 1


def test_what_is_measured_is_not_what_beta_was_sought_on():
    noise = parse_noise("gaussian:1", images=False)
    measured, sought = (
        torch.cat([X for _, X in trial_of(bank_of()).queries(noise, 200, purpose)])
        for purpose in ("measured", "tuning")
    )
    assert float(torch.cdist(measured, sought).min()) > 1e-3


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    bank = bank_of()
    first, again, other = (hopmem.evaluate(bank, noise=["gaussian:1"], samples=40, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert hopmem.evaluate(replace(bank, seed=1), noise=["gaussian:1"], samples=40) == first


@pytest.mark.parametrize("methods", [[], ["bank"], ["nearest"], ["nearest", "bank"]])
def test_the_bank_is_measured_whichever_baselines_are_asked_for(methods):
    rows = hopmem.evaluate(bank_of(), noise=["mask:0.5"], methods=methods, samples=5).rows
    assert [row.method for row in rows] == ["bank", *(each for each in methods if each != "bank")]


def test_a_row_does_not_depend_on_which_others_are_asked_for():
    bank = bank_of()
    both = hopmem.evaluate(bank, noise=["mask:0.5", "gaussian:1"], sizes=[10, 30], samples=40)
    alone = hopmem.evaluate(bank, noise=["gaussian:1"], sizes=[10], methods=["manhattan"], samples=40)
    assert all(row in both.rows for row in alone.rows)
    assert [(row.noise, row.size) for row in both.rows[:: len(METHODS)]] == [
        ("mask:0.5", 10),
        ("mask:0.5", 30),
        ("gaussian:1", 10),
        ("gaussian:1", 30),
    ]


def test_said_twice_is_said_once():
    evaluation = hopmem.evaluate(bank_of(), noise="mask:0.5", methods=["bank", "bank"], sizes=[5, 5], samples=5)
    assert len(evaluation.rows) == 1


def test_the_budget_does_not_change_what_is_counted():
    methods = [method for method in METHODS if method != "uhop"]  # which learns in batches that fit
    rows = by_method(bank_of(), "gaussian:1", methods=methods, budget=200_000)
    for method, row in by_method(bank_of(), "gaussian:1", methods=methods).items():
        assert row.accuracy == rows[method].accuracy
        assert row.error == pytest.approx(rows[method].error, rel=1e-3)


def test_a_copy_counts_as_the_pattern():
    X = randn(10, 16).repeat(3, 1)
    rows = by_method(MemoryBank.from_patterns(X), "gaussian:0.01")
    assert {row.accuracy for method, row in rows.items() if method not in {"modern", "sparse", "dam10"}} == {1}
    assert rows["cosine"].metastable == 1  # three memories share each answer
    assert rows["cosine"].error < 1e-2


def test_smaller_sizes_have_the_beta_that_their_own_patterns_ask_for():
    bank = bank_of(60, 5)
    rows = hopmem.evaluate(bank, noise=["gaussian:0.1"], methods=["bank"], sizes=[60, 20, 2], samples=5).rows
    assert rows[0].beta == bank.tuned().tuning.beta
    assert rows[0].beta > rows[1].beta > rows[2].beta


def test_a_beta_that_validation_chose_is_kept_at_every_size():
    bank = bank_of().tuned()
    chosen = replace(bank, tuning=replace(bank.tuning, beta=3.0, source=VALIDATED))
    rows = hopmem.evaluate(chosen, noise=["gaussian:0.1"], methods=["bank"], sizes=[30, 20], samples=5).rows
    assert [row.beta for row in rows] == [3.0, 3.0]


def test_fewer_patterns_keep_the_learned_map():
    learned = hopmem.optimize(bank_of(30, 40), objective="average")
    small = part(learned, torch.tensor([7, 3]), CPU, 1 << 28, None)
    assert small.phi.W is learned.phi.W
    assert torch.equal(small.features, learned.features[[3, 7]])
    assert torch.equal(small.patterns, learned.patterns[[3, 7]])
    assert small.names == ("3", "7")


@pytest.mark.parametrize("noise", ["mixed", "missing:0.5", "blur:1+gaussian:0.1", "shift:1"])
def test_images_are_measured_between_black_and_white(noise):
    for row in by_method(images(), noise, samples=40).values():
        assert 0 <= row.error <= 30
        assert 0 <= row.accuracy <= 1


def test_pairs_are_measured_by_their_patterns():
    bank = bank_of()
    paired = replace(bank, values=randn(30, 3), values_shape=(3,))
    assert by_method(paired, "gaussian:1") == by_method(bank, "gaussian:1")


@pytest.mark.parametrize("noise", ["mixed", "missing:0.5"])
@pytest.mark.parametrize("X", [randn(1, 8), torch.ones(3, 8), torch.zeros(1, 8), torch.zeros(2, 8)])
def test_one_pattern_and_banks_of_one_pattern_can_be_evaluated(X, noise):
    for row in by_method(MemoryBank.from_patterns(X), noise, samples=7).values():
        assert row.accuracy == 1
        assert row.error < 1e-6
        assert all(value is None or value == value for value in astuple(row))


def test_one_query_has_no_standard_error_of_its_error():
    row = by_method(bank_of(), "mask:0.5", samples=1)["bank"]
    assert math.isnan(row.error_se)
    assert row.accuracy in {0, 1}


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"noise": ["fog:1"]}, ["fog"]),
        ({"noise": ["blur:1"]}, ["blur", "images"]),
        ({"noise": []}, ["0 noises"]),
        ({"samples": 0}, ["0 samples"]),
        ({"methods": ["bank", "oracle"]}, ["bank, modern", "oracle"]),
        ({"sizes": [31]}, ["1 to 30", "31"]),
        ({"sizes": [5, 0]}, ["1 to 30", "0"]),
        ({"device": "gpu"}, ["gpu"]),
    ],
)
def test_options_out_of_their_range_are_usage_errors(options, facts):
    with raises_refusal(2, *facts):
        hopmem.evaluate(bank_of(), **options)


def test_progress_is_told_and_ends_with_all():
    told: dict[str, list[tuple[int, int]]] = {}
    hopmem.evaluate(
        bank_of(),
        samples=300,
        noise=["mask:0.5", "mixed"],
        sizes=[10, 30],
        methods=["bank", "uhop"],
        watch=lambda label, done, total, *_: told.setdefault(label, []).append((done, total)),
    )
    assert told["evaluating"][-1] == (2400, 2400)
    assert told["evaluating"] == sorted(told["evaluating"])
    assert {"measuring", "learning"} <= set(told)
