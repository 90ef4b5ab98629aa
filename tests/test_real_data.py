"""The main job on real images, where they are at hand: HOPMEM_DATA names the folder."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hopmem.cli import app

DATA = Path(os.environ.get("HOPMEM_DATA", ""))
MNIST = DATA / "mnist-t10k-images-idx3-ubyte.gz"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MNIST.is_file(), reason="HOPMEM_DATA names no folder with the MNIST test images"),
]


def hopmem(*args: object) -> dict:
    done = CliRunner().invoke(app, [*map(str, args), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mnist") / "bank.safetensors"
    stored = hopmem("store", MNIST, "-o", path)
    assert (stored["patterns"], stored["shape"], stored["dtype"]) == (10_000, [28, 28], "uint8")
    assert stored["bytes"] < 1.05 * 7_840_000
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.frombuffer(gzip.decompress(MNIST.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)


def test_images_with_half_their_pixels_zeroed_are_found(bank, images, tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.choice(len(images), 500, replace=False)
    queries = images[rows] * (rng.random((500, 28, 28)) > 0.5).astype(np.uint8)
    np.save(tmp_path / "q.npy", queries)
    answers = hopmem("retrieve", bank, tmp_path / "q.npy", "-o", tmp_path / "a.npy")["results"]
    nearest = (queries.reshape(500, -1) / 255.0) @ (images.reshape(-1, 784) / 255.0).T
    nearest = (nearest / np.linalg.norm(images.reshape(-1, 784) / 255.0, axis=1)).argmax(1)
    assert [answer["index"] for answer in answers] == nearest.tolist()
    assert np.mean([answer["index"] == row for answer, row in zip(answers, rows, strict=True)]) > 0.95


@pytest.mark.parametrize("hidden", ["random", "lower half"])
def test_partial_queries_name_the_nearest_neighbour_on_their_known_entries(bank, images, tmp_path, hidden):
    rng = np.random.default_rng(1)
    rows = rng.choice(len(images), 300, replace=False)
    queries = images[rows] / np.float32(255)
    unknown = rng.random(queries.shape) < 0.7 if hidden == "random" else np.zeros(queries.shape, bool)
    unknown[:, 14:] |= hidden == "lower half"
    queries[unknown] = np.nan
    np.save(tmp_path / "q.npy", queries)
    answers = hopmem("retrieve", bank, tmp_path / "q.npy", "-o", tmp_path / "a.npy", "--snap")["results"]
    everything = images.reshape(-1, 784) / np.float32(255)
    for answer, query in zip(answers, queries.reshape(300, -1), strict=True):
        known = ~np.isnan(query)
        distance = ((everything[:, known] - query[known]) ** 2).sum(1)
        assert distance[answer["index"]] == distance.min()


def test_learning_lowers_the_loss_of_real_images(bank, tmp_path):
    learned = hopmem("optimize", bank, "-o", tmp_path / "learned.safetensors", "--objective", "average", "--steps", 10)
    assert learned["loss"]["last"] < learned["loss"]["first"]
    assert learned["separation"]["learned"]["max_cosine"] < learned["separation"]["raw"]["max_cosine"]
