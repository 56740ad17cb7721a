"""Bad recipes through the real command: exit 2, one line with place and cure, nothing written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BAD_FILES = {
    "cosines beside more": ("network:\n  covariates: [site]\n  cosine_head: only\n", "cosine_head: auxiliary, or leave covariates"),
    "references of mixed batches": ("network: {control_features: true}\ntraining: {batch_scope: mixed}\n", "write for example batch_scope: plate"),
    "references that are classes": ("network: {control_features: true}\nwells: {classes: all}\n", "so they cannot be classes too: set wells.classes: treatments"),
    "a loss without its head": ("training: {loss: arcface}\n", "network.cosine_head: auxiliary, or only"),
    "a loss that is none": ("training: {loss: 0.5 zebra}\n", "names are bce"),
    "heads in the dark": ("network: {heads: both}\n", "covariates: [cell_type]"),
    "sizes that fall": ("augmentation: {progressive_sizes: [64, 32]}\n", "the smallest first"),
    "a backbone that is none": ("network: {ensemble: [densenet1]}\n", "timm:NAME"),
    "unknown key": ("seed: 0\nepoch: 3\n", ":2: unknown key 'epoch'; did you mean 'training.epochs'?"),
    "unlike any key": ("qqqqq: 3\n", "known keys: task, data"),
    "number without a dot": ("training: {learning_rate: 1e-3}\n", ":1: training.learning_rate is '1e-3': input should be a valid number; write 1.0e-3"),
    "integer in quotes": ("seed: '3'\n", "write 3"),
    "fraction for an integer": ("training: {epochs: 1.5}\n", "epochs is 1.5"),
    "truth for an integer": ("seed: true\n", "seed is True"),
    "word for a truth": ("assignment: {plate_groups: 'yes'}\n", "write plate_groups: true or plate_groups: false"),
    "number for a text": ("data: 3\n", 'write it in quotes: data: "3"'),
    "no value": ("data:\n", "give it a value, or leave the line out"),
    "word for a list": ("wells: {cell_types: U2OS}\n", "write a list of different names"),
    "numbers in a list": ("wells: {experiments: [1, 2]}\n", "write a list of different names"),
    "a cell type that is a path": ("wells: {cell_types: [x/../../y]}\n", ":1: wells.cell_types is ['x/../../y']: 'x/../../y' cannot be the name of a folder"),
    "an experiment above": ("wells: {experiments: [..-01]}\n", "'..-01' cannot be the name of a folder: letters, digits and any of _.+- do"),
    "a network of timm that is a path": ("network: {backbone: timm:../../x}\n", ":1: network.backbone is 'timm:../../x': no such backbone"),
    "a member that is a path": ("network: {ensemble: ['timm:/etc/x']}\n", "no such backbone"),
    "a name twice": ("wells: {cell_types: [RPE, RPE]}\n", "a name stands there twice"),
    "negative": ("training: {epochs: -1}\n", "greater than or equal to 0"),
    "batch of one": ("training: {batch_size: 1}\n", "greater than or equal to 2"),
    "virtual batch below a batch": ("training:\n  batch_size: 16\n  virtual_batch: 8\n", ":3: training.virtual_batch is 8: use at least the batch size"),
    "nothing to compare": ("training: {ablate_virtual_batch: true}\n", "without a virtual_batch there is nothing to compare"),
    "sizes the wrong way round": ("prediction:\n  min_batch_size: 64\n  max_batch_size: 32\n", ":3: prediction.max_batch_size is 32: it is below min_batch_size, 64"),
    "certainty of a certain thing": ("assignment: {min_group_posterior: 1.0}\n", "less than 1"),
    "infinite": ("training: {learning_rate: .inf}\n", "finite number"),
    "not a choice": ("training: {batch_scope: plates}\n", "'plate', 'experiment' or 'mixed'"),
    "key twice": ("seed: 0\ntraining: {epochs: 1}\nseed: 1\n", ":3: 'seed' is set twice; keep this or"),
    "list of lines": ("- seed\n- 1\n", "not a list of `key: value` lines"),
    "only a word": ("demo\n", "not a list of `key: value` lines"),
    "open bracket": ("wells: {cell_types: [RPE\n", "not YAML"),
    "tab": ("\tseed: 0\n", ":1: not YAML"),
    "foreign tag": ("seed: !!python/object:os.system 1\n", ":1: not YAML"),
    "unknown preset": ("preset: gigantic\n", "unknown preset 'gigantic'; use one of: demo"),
    "a key of the other task": ("task: protein-atlas\npreset: atlas-tiny\ntraining: {pretrain_epochs: 0}\nassignment: {plate_groups: false}\n",
                                ":4: assignment.plate_groups is False, and no step of the task protein-atlas reads it; leave it out"),
    "a key of the Protein Atlas": ("preset: tiny\nwells: {folds: 3}\n", ":2: wells.folds is 3, and no step of the task rxrx1 reads it; leave it out"),
    "cell types that are not drawn": ("preset: tiny\nwells: {cell_types: [RPE, HUVAC]}\n", ":2: no cell_type 'HUVAC' in the preset tiny; choose from HUVEC, RPE"),
    "data not there": ("data: nowhere\n", "no such data folder"),
}
BAD_OVERRIDES = {
    "seed": "write for example -p seed=1",
    "assignment.thresholds=half": "assignment.thresholds is 'half', and no step of the task rxrx1 reads it; leave it out",
    "lr=0.1": "unknown key 'lr'",
    "seed=one": "write a number without quotes",
    "training.learning_rate=1e-4": "write 1.0e-4",
    "wells.cell_types=[RPE": "the value is not YAML",
    "seed=2001-99-99": "the value is not YAML",
    "seed=0x_": "the value is not YAML",
    'run="a\\0b"': "no path has a NUL character; name another folder",
}


Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path, refused: Refuse, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """refuse(argument, ...) gives the one line of `cellsignal run`, which must be refused, say nothing else and write nothing."""

    def run(*arguments: str) -> str:
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.rglob("*"))
        line = refused("run", *arguments)
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return run


@pytest.mark.parametrize("text, part", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file(tmp_path: Path, refuse: Refuse, text: str, part: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    line = refuse("bad.yaml")
    assert part in line and ";" in line
    if part not in ("no such data folder", BAD_FILES["unknown preset"][1]):
        assert "bad.yaml" in line


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_bad_override(tmp_path: Path, refuse: Refuse, override: str) -> None:
    (tmp_path / "good.yaml").write_text("preset: tiny\n")
    line = refuse("good.yaml", "-p", override)
    assert f"-p {override}" in line and BAD_OVERRIDES[override] in line


def test_an_empty_run_folder(tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "good.yaml").write_text("preset: tiny\n")
    assert "--out is empty; " in refuse("good.yaml", "--out", "")


@pytest.mark.parametrize(
    "name, part",
    {"absent.yaml": "no such file", ".": "is a folder", "latin.yaml": "not UTF-8", "picture.yaml": "not ", "pipe.yaml": "is no regular file"}.items(),
)
def test_not_a_recipe_at_all(tmp_path: Path, refuse: Refuse, name: str, part: str) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")  # would be waited for
    (tmp_path / "latin.yaml").write_bytes("data: Zürich\n".encode("latin-1"))
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00")
    assert part in refuse(name)


def test_the_real_command_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("preset: gigantic\n")
    command = [sys.executable, "-m", "cellsignal.cli.main", "run"]
    for arguments, part in ((["bad.yaml"], "unknown preset 'gigantic'; "), (["bad.yaml", "-p", "run=\udcff"], "the value is not YAML; ")):
        ended = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True)
        [line] = ended.stderr.splitlines()
        assert (ended.returncode, ended.stdout) == (2, "") and line.startswith("cellsignal: error: ") and part in line
        assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]
