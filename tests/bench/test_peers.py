"""The methods of others give what they should give, or measuring them would mean nothing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cellsignal.bench import baselines
from cellsignal.bench.sample import Sample, reduced_sample, take_sample
from cellsignal.data.images.reader import read_site
from cellsignal.errors import InputError
from cellsignal.learn.networks.batchnorm import batch_statistics


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return take_sample(tmp_path_factory.mktemp("sample"), data=None, count=18, image_size=32)


def test_the_sample_is_a_data_set_of_different_sites(sample: Sample, tmp_path: Path) -> None:
    images = sample.images()
    assert images.shape == (18, 6, 32, 32) and (sample.originals, sample.image_size) == (8, 32)
    assert len({image.tobytes() for image in images}) == 18
    assert np.array_equal(np.rot90(images[1], 1, axes=(1, 2)), images[9]), "grey values of a turned copy are the original's"
    small = reduced_sample(sample, tmp_path, 16)
    assert np.abs(small.images().mean((2, 3)) - images.mean((2, 3))).max() < 0.6, "areas keep their means"
    assert take_sample(tmp_path / "again", data=sample.root, count=4).originals == 4
    with pytest.raises(InputError, match="only 18 whole sites"):
        take_sample(tmp_path / "more", data=sample.root, count=200)


def test_the_import_warns_of_nothing_in_a_notebook_without_widgets() -> None:
    code = "import sys, ipykernel.zmqshell\nsys.modules['ipywidgets'] = None\nimport cellsignal.bench.baselines"
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("read", [baselines.official, baselines.opencv])
def test_others_read_the_same_picture(sample: Sample, read) -> None:
    if read is baselines.official:
        pytest.importorskip("skimage")
    stem = sample.stems[3]
    assert np.array_equal(read(sample.root, stem).transpose(2, 0, 1), read_site(sample.root, stem))


def test_their_data_paths_turn_scale_and_repeat(sample: Sample) -> None:
    first = torch.from_numpy(read_site(sample.root, sample.stems[0])) / 255
    turns = [torch.rot90(each, k, (1, 2)) for each in (first, first.flip(2)) for k in range(4)]
    seen = [baselines.Brodt(sample.root, sample.stems, epochs=9)[18 * epoch][0] for epoch in range(8)]
    assert all(any(torch.equal(image, turn) for turn in turns) for image in seen) and len({image.numpy().tobytes() for image in seen}) > 2
    image, row = baselines.Sypetkowski(sample.root, sample.stems, epochs=2)[20]
    assert row == 2 and image.shape == (6, 32, 32) and image.dtype == torch.float32
    assert image.mean((1, 2)).abs().max() < 0.5 and 0.6 < image.std((1, 2)).min() < image.std((1, 2)).max() < 1.4
    [(images, rows)] = baselines.loader(baselines.Brodt(sample.root, sample.stems), batch_size=18, workers=0)
    assert images.shape == (18, 6, 32, 32) and sorted(rows.tolist()) == list(range(18))


def test_bagging_is_the_mean_over_batches_normalised_by_themselves(sample: Sample) -> None:
    network = baselines.Eager("densenet-small", channels=6, classes=5, device=torch.device("cpu"))
    assert network.model.body.features.conv0.weight.is_contiguous()
    answer, seconds = baselines.bagging(network, baselines.Sites(sample.root, sample.stems), sizes=(9, 18), workers=0)
    images = torch.from_numpy(sample.images()) / 255
    with torch.no_grad(), batch_statistics(network.model):
        halves = torch.cat([network.logits(half).log_softmax(1) for half in images.split(9)])
        whole = network.logits(images).log_softmax(1)
    np.testing.assert_allclose(answer, (halves + whole) / 2, atol=1e-4)
    assert len(seconds) == 2
    before = network.model.body.features.conv0.weight.clone()
    assert network.learn(images, torch.ones(18, 5)) == 18 and not torch.equal(before, network.model.body.features.conv0.weight)


def test_floors_do_what_they_count(sample: Sample, tmp_path: Path) -> None:
    assert baselines.memory_bandwidth(size=2**20).work() == 2**20 / 1e9 and baselines.matrix_rate(side=32).work() == 2 * 32**3 / 1e9
    assert baselines.disk_rate(tmp_path, size=2**21).work() == 2**21 / 1e9
    assert baselines.decoding_rate([sample.paths(stem) for stem in sample.stems[:4]]).work() == 4 == baselines.site_copy(sample.images()[:4]).work()
