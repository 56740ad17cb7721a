"""Two processes learn what one learns: the same sites, steps and curves; and when one dies, all end."""

import errno
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trainings import STEADY, Epochs, cut_short, small, steady

from building import history_of, make_network, make_phase
from cellsignal.budget import TimeSpent
from cellsignal.errors import InputError, StepFailed
from cellsignal.files import read_json, sha256
from cellsignal.learn.batches.dataset import SiteImages
from cellsignal.learn.training import distributed
from cellsignal.learn.training.losses import LOSSES
from cellsignal.learn.training.distributed import launch, process_count
from cellsignal.learn.training.epoch import Trainer, train_epoch
from cellsignal.learn.training.optim import build_optimizer

TWO = {"num_processes": 2}
KINDS = {
    "one batch each": {"batch_size": 4},
    "uneven steps": {"batch_size": 3, "virtual_batch": 7},
    "one batch a step": {"batch_size": 8, "virtual_batch": 8},  # the other process adds nothing
    "mixup_alpha": {"batch_size": 3, "virtual_batch": 7, "mixup_alpha": 0.4},
    "cutmix_alpha": {"batch_size": 4, "virtual_batch": 12, "cutmix_alpha": 1.0},  # two of a kind that are cut whole have no spread in a smaller batch
    "average": {"batch_size": 3, "virtual_batch": 7, "ema_decay": 0.9},
    "head": {"batch_size": 3, "virtual_batch": 7, "trainable": "head"},
}


def curves(rows: list[dict]) -> torch.Tensor:
    return torch.tensor([[row["loss"], row["accuracy"], row["held_out_accuracy"]] for row in rows], dtype=torch.float64)


@pytest.mark.parametrize(("kind", "processes"), [*((kind, 2) for kind in KINDS), ("uneven steps", 3)])
def test_several_processes_learn_what_one_learns(patches: tuple, tmp_path: Path, kind: str, processes: int) -> None:
    # Without a virtual batch two processes take two batches a step: so does a virtual batch of two in one process.
    alone = {"virtual_batch": 8} if kind == "one batch each" else {}
    trained = {}
    for name, changes, count in (("one", alone, 1), ("two", {}, processes)):
        model, rounding = steady()
        rows = small(patches, tmp_path / f"{name}/model.safetensors", model=model, options={"num_processes": count}, **STEADY | KINDS[kind] | changes)
        trained[name] = curves(rows), load_file(tmp_path / f"{name}/model.safetensors")
    assert len(set(trained["one"][0][:, 0].tolist())) == 4, "it does learn"
    torch.testing.assert_close(*trained.values(), rtol=rounding, atol=rounding)  # running statistics too, and the batches they count


def test_a_process_without_a_batch_takes_the_scaled_step_of_the_others(patches: tuple) -> None:
    data, model = SiteImages(patches[0], patches[1].iloc[:4], class_numbers=[0, 10, 20, 30]), make_network("plain-cnn", channels=6, classes=4)
    phase, scaler = make_phase("train", 1, 4, 0.1, optimizer="sgd"), torch.amp.GradScaler("cpu", init_scale=4.0)
    others = distributed.ProcessGroup(1, 2, all_reduce=lambda flat: torch.cat([flat[:-1] + 8, flat[-1:]]))  # the first's gradients; no one is late
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = Trainer(model, build_optimizer(phase.training, model.parameters()), phase, process_group=others, scaler=scaler)
    train_epoch(trainer, data, [[np.arange(4)]])
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, before[name] - 0.1 * 8 / 4)


def test_in_fp32_the_curves_agree_within_float_error(patches: tuple, tmp_path: Path) -> None:
    losses = []
    for processes in (1, 2):
        model, rounding = steady(kind=torch.float32)
        rows = small(patches, tmp_path / f"{processes}/model.safetensors", model=model, batch_size=4, virtual_batch=16,
                     options={"num_processes": processes}, **STEADY)
        losses.append(curves(rows)[:, 0])
    torch.testing.assert_close(*losses, rtol=rounding, atol=rounding)


class Logged(SiteImages):
    """Writes down who read what when."""

    log = Path()

    def read_into(self, row: int, out: np.ndarray, *, epoch: int = 0, **how) -> None:
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()} {epoch} {row} {len(self)}\n")
        super().read_into(row, out, epoch=epoch, **how)


@pytest.mark.parametrize("batch_size", [3, 5])
def test_every_site_is_seen_once_an_epoch(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    monkeypatch.setattr(Logged, "log", tmp_path / "log")
    small(patches, tmp_path / "model.safetensors", kind=Logged, watch=False, batch_size=batch_size, epochs=3, options=TWO)
    seen = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert Counter((int(epoch), int(row)) for _, epoch, row, _ in seen) == Counter({(e, r): 1 for e in range(3) for r in range(16)})
    shares = Counter(process for process, *_ in seen)
    assert len(shares) == 2 and str(os.getpid()) not in shares and min(shares.values()) >= 0.25 * 48


@pytest.mark.parametrize(("virtual_batch", "order"), [(0, (2, 1, 2)), (7, (1, 2, 1)), (0, (1, 2))])
def test_a_phase_goes_on_in_fewer_and_more_processes(
    patches: tuple, tmp_path: Path, virtual_batch: int, order: tuple[int, ...]
) -> None:
    shape = {"batch_size": 3, "virtual_batch": virtual_batch, "epochs": len(order), **STEADY}
    model, rounding = steady()
    whole = small(patches, tmp_path / "whole/model.safetensors", model=model, options={"num_processes": order[0]}, **shape)
    weights = tmp_path / "parts/model.safetensors"
    for processes in order:
        with suppress(TimeSpent):
            small(patches, weights, model=steady()[0], options={"num_processes": processes, "budget": Epochs(1)}, **shape)
        [facts] = (tmp_path / "parts").glob("*.json")
        assert read_json(facts)["details"]["batches_per_step"] == order[0], "as the phase began"
    rows = history_of(weights)
    found, expected = ((curves(each), load_file(path)) for each, path in ((rows, weights), (whole, tmp_path / "whole/model.safetensors")))
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)


@pytest.mark.slow
@pytest.mark.ci
def test_two_interrupted_processes_end_with_the_same_bits(patches: tuple, tmp_path: Path) -> None:
    whole, seen = small(patches, tmp_path / "whole/model.safetensors", options=TWO, batch_size=3), []
    for _ in range(3):
        budget, words, rows = Epochs(2), "", []
        try:
            rows = small(patches, tmp_path / "parts/model.safetensors", batch_size=3,
                         options={**TWO, "budget": budget, "on_epoch": lambda history: seen.append(len(history))})
        except TimeSpent as spent:
            words = str(spent)
        assert words == ("" if rows else "train, epoch 2 of 4")
    assert seen == [1, 2, 3, 4, 4], "each epoch as it ends, and the finished phase once"
    assert sha256(tmp_path / "whole/model.safetensors") == sha256(tmp_path / "parts/model.safetensors")
    assert [row["loss"] for row in rows] == [row["loss"] for row in whole]
    assert rows == history_of(tmp_path / "parts/model.safetensors")


def test_the_first_process_names_sites_without_labels_for_all(patches: tuple, tmp_path: Path) -> None:
    root, sites = patches
    others = SiteImages(root, sites.iloc[16:].assign(experiment="HUVEC-03"), class_numbers=[0, 10, 20, 30])
    def relabel(model, card, epoch) -> np.ndarray:
        with open(tmp_path / "log", "a") as file:
            file.write(f"{os.getpid()} {epoch}\n")
        return np.arange(16) % 5 - 1
    rows = small(patches, tmp_path / "model.safetensors", batch_size=3, epochs=3, pseudo_label_epochs=2, ema_decay=0.9,
                 options={**TWO, "unlabelled": others, "relabel": relabel})
    asked = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [epoch for _, epoch in asked] == ["1", "2"] and len({process for process, _ in asked}) == 1
    assert [row.get("pseudo_labels") for row in rows] == [None, 12, 12]


def test_the_model_here_ends_with_the_weights_and_their_name(patches: tuple, tmp_path: Path) -> None:
    model, weights = make_network("densenet-small", channels=6, classes=4), tmp_path / "model.safetensors"
    small(patches, weights, model=model, epochs=1, options=TWO)
    assert model.origin == sha256(weights) == read_json(tmp_path / "model.json")["outputs"]["model.safetensors"]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in load_file(weights).items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_a_scaler_skips_the_same_steps_in_all_processes(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steep losses, scaled beyond fp32, overflow until the scaler has come down; only some batches do so at its edge."""
    bce = LOSSES["bce"]
    monkeypatch.setitem(LOSSES, "bce", lambda logits, targets: 1e3 * bce(logits, targets))
    monkeypatch.setattr("cellsignal.learn.training.checkpoint.gradient_scaler",
                        lambda device, precision: torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=2))
    states = []
    for processes in (1, 2):
        options = {"num_processes": processes, "budget": Epochs(3)}
        cut_short(patches, tmp_path / f"{processes}/model.safetensors", batch_size=4, virtual_batch=8, options=options)
        states.append(read_json(tmp_path / f"{processes}/model.checkpoint.json")["details"]["scaler"])
    assert states[0] == states[1] and states[0]["scale"] < 2.0**126


def die_after(epochs: int, number: int):
    """Kills one of the processes once so many epochs are done."""
    def kill(history: list[dict]) -> None:
        if len(history) == epochs:
            os.kill(sorted(child.pid for child in multiprocessing.active_children())[number], signal.SIGKILL)
    return kill


@pytest.fixture(scope="module")
def undisturbed(patches: tuple, tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the weights of a training whose two processes live."""
    weights = tmp_path_factory.mktemp("whole") / "model.safetensors"
    small(patches, weights, epochs=4, options=TWO)
    return sha256(weights)


@pytest.mark.parametrize("number", [0, 1])
def test_when_one_process_dies_all_end_in_one_line(
    patches: tuple, undisturbed: str, tmp_path: Path, capfd: pytest.CaptureFixture, number: int
) -> None:
    weights = tmp_path / "model.safetensors"
    capfd.readouterr()
    began = time.monotonic()
    with pytest.raises(StepFailed, match="training in 2 processes ended: .*; give the same command again to continue") as failure:
        small(patches, weights, epochs=4, options={**TWO, "on_epoch": die_after(2, number)})
    assert time.monotonic() - began < 300 and "\n" not in str(failure.value)
    assert "killed by SIGKILL" in str(failure.value) or "one of them has ended" in str(failure.value)
    assert not multiprocessing.active_children() and not weights.exists()
    assert "Traceback" not in capfd.readouterr().err
    small(patches, weights, epochs=4, options=TWO)
    assert sha256(weights) == undisturbed


def test_a_full_shared_memory_is_no_process_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as a full disk is, because the same command again would not help."""

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as a semaphore does, without a path

    monkeypatch.setattr(distributed, "_launch_processes", fail)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
        launch(print, device="cpu", processes=2, on_message=print)


def test_what_one_process_cannot_read_is_named_by_all(patches: tuple, tmp_path: Path) -> None:
    root, sites = patches
    missing = sites.assign(stem=sites["stem"].where(sites.index != 5, "train/HUVEC-01/Plate1/nowhere_s1"))
    with pytest.raises(InputError, match="nowhere_s1"):
        small((root, missing), tmp_path / "model.safetensors", cache=False, options=TWO)
    assert not multiprocessing.active_children() and list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_ends_all_in_words(patches: tuple, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="phase train: the loss is (nan|inf) in epoch .*; lower training.learning_rate"):
        small(patches, tmp_path / "model.safetensors", learning_rate=1e30, options=TWO)


def test_an_error_of_the_listener_ends_the_training(patches: tuple, tmp_path: Path) -> None:
    def stop(history: list[dict]) -> None:
        raise KeyError("enough")
    with pytest.raises(KeyError, match="enough"):
        small(patches, tmp_path / "model.safetensors", epochs=500, options={**TWO, "on_epoch": stop})
    assert not multiprocessing.active_children() and not (tmp_path / "model.safetensors").exists()


def test_an_unforeseen_error_comes_with_its_name() -> None:
    def work(process_group, send_message) -> None:
        process_group.barrier()
        if process_group.rank == 1:
            raise ZeroDivisionError("by nought")
        process_group.barrier()
    with pytest.raises(StepFailed, match="ZeroDivisionError: by nought"):
        launch(work, device="cpu", processes=2, on_message=print)


def test_the_processes_of_a_killed_training_end_too(tmp_path: Path) -> None:
    program = ("import os, sys\nfrom cellsignal.learn.training.distributed import launch\n"
               "def work(process_group, send_message):\n"
               "    open(f'{sys.argv[1]}/{os.getpid()}.pid', 'w').close()\n"
               "    while True: process_group.barrier()\n"
               "launch(work, device='cpu', processes=2, on_message=print)\n")
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert eventually(lambda: len(list(tmp_path.glob("*.pid"))) == 2, seconds=60)
    finally:
        parent.kill()
        parent.wait()
    children = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert eventually(lambda: not any(alive(child) for child in children), seconds=20)


def eventually(condition, *, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return held


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("device", "processes", "gpus", "expected"), [
    ("auto", 0, 2, 2), ("auto", 0, 1, 1), ("auto", 0, 0, 1), ("cpu", 0, 2, 1), ("cpu", 3, 2, 3), ("cuda", 1, 2, 1), ("auto", 2, 0, 2),
])
def test_one_process_per_gpu_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, device: str, processes: int, gpus: int, expected: int
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert process_count(device, processes) == expected


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError, match="processes: 3 processes need a GPU each, and there are 2; set machine.num_processes: 0"):
        process_count("auto", 3)


def test_a_gpu_in_use_is_named_before_anything_forks(patches: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    with pytest.raises(InputError, match="already uses a GPU.*restart the notebook"):
        small(patches, tmp_path / "model.safetensors", options=TWO)


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_colab_without_two_gpus_is_told_to_train_in_one_process(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    """There Accelerate runs the work in this very process, whose signals and pipe are not the work's to change."""
    shell = SimpleNamespace(get_ipython=lambda: "<google.colab._shell.Shell object>")
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    launched = []
    monkeypatch.setattr("accelerate.notebook_launcher", lambda *arguments, **options: launched.append(options["num_processes"]))
    if gpus == 2:
        launch(print, device="auto", processes=2, on_message=print)
    else:
        with pytest.raises(InputError, match="^processes: a notebook on Colab .*; set machine.num_processes: 0$"):
            launch(print, device="cpu", processes=2, on_message=print)
    assert launched == [2] * (gpus == 2)


def test_the_processes_meet_at_a_port_that_the_system_gives_to_nobody_else() -> None:
    with open("/proc/sys/net/ipv4/ip_local_port_range") as stream:  # Linux
        assert distributed._free_port() < int(stream.read().split()[0])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", (port := distributed._free_port())))
        with pytest.MonkeyPatch.context() as patch, pytest.raises(StepFailed, match="no port is free"):
            patch.setattr(distributed, "PORTS", range(port, port + 1))
            distributed._free_port()
