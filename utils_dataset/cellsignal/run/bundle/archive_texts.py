"""The texts of an archive, with the sections that Kaggle's Winning Model Documentation Guidelines require."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cellsignal.run.bundle.entry_points import PARAMS, PATHS, SETTINGS
from cellsignal.run.chain.rebuild import is_fitted
from cellsignal.tasks import TASKS


@dataclass(frozen=True)
class RunFacts:
    """The facts about a run that the texts of its archive contain."""

    name: str  # of the run
    parameters: Mapping[str, Any]  # as recipe.json has them
    provenance: Mapping[str, Any]  # recipe.json: versions, commit, platform
    hardware: Mapping[str, Any]  # of the machine that trained
    seconds: Mapping[str, float | None]  # for weights and for scores; None where that is not recorded
    submission: str  # SHA-256
    files: Sequence[str]  # names in the archive


def readme(facts: RunFacts) -> str:
    """README.md of an archive."""
    sections = {
        "ARCHIVE CONTENTS": _contents(facts),
        "HARDWARE": _hardware(facts),
        "SOFTWARE": _software(facts),
        "DATA SETUP": _data(facts),
        "DATA PROCESSING": _processing(facts),
        "MODEL BUILD": _build(facts),
    }
    head = f"# {facts.name}\n\nAll that made `run/submission.csv`, except the data set, and three ways to make it again."
    return "\n\n".join([head, *(f"# {title}\n\n{text}" for title, text in sections.items())]) + "\n"


def entry_points() -> str:
    """entry_points.md of an archive."""
    return f"""# Entry points

To be called from the folder of this archive. All paths are in `{SETTINGS}`, and nowhere else; relative ones start there.

1. `python -m prepare_data` makes RAW_DATA_DIR ready. Real images are read as they were downloaded, so there is no cleaned
   copy: it checks every row and every image and names what is missing or damaged. Simulated plates are drawn there.
2. `python -m train` reads RAW_DATA_DIR and trains everything from scratch: weights and checkpoints go to RUN_DIR/weights.
   Then it does what `predict` does.
3. `python -m predict` reads RAW_DATA_DIR and RUN_DIR/weights and writes RUN_DIR/scores, RUN_DIR/submission.csv and
   SUBMISSION_DIR/submission.csv. For a new test set, put its tables and images into RAW_DATA_DIR first.
   `python -m predict --from scores` decides on the scores in RUN_DIR/scores and opens no image.

Each prints first what it overwrites, and takes further arguments of `cellsignal run` but `--out`, such as `-p machine.num_workers=4`. Exit status 0:
done; 1: a step failed; 2: bad input, in one line; 3: the time budget is spent: give the same command again to continue.
"""


def structure(names: Iterable[str]) -> str:
    """directory_structure.txt: what `find . -type d` prints, sorted."""
    folders = {parent.as_posix() for name in names for parent in PurePosixPath(name).parents}
    return "".join(f"{folder if folder == '.' else f'./{folder}'}\n" for folder in sorted(folders))


def _contents(facts: RunFacts) -> str:
    contents = {
        "README.md": "this page",
        SETTINGS: f"the only paths: {', '.join(PATHS)}",
        "entry_points.md": "what to call, what it reads and writes",
        "prepare_data.py, train.py, predict.py": "the entry points",
        "requirements.txt": "exact versions of all libraries",
        PARAMS: "the recipe: every parameter of the run",
        "cellsignal/": "the package, as it was when the archive was written",
        "kernels/": "the notebooks that the entry points execute",
        "run/weights/": "trained networks (safetensors) and, beside each, its architecture, classes and history (JSON)",
        "run/scores/": "the networks' predictions",
        "run/receipts/": "what each step made, with SHA-256",
        "run/*.csv, run/*.json": "the submission, the measured accuracies, what the decision fitted, the run's own record",
        "pretrained/": "the weights that training began with",
        "directory_structure.txt": "all folders",
        "SHA256SUMS": "of every file; `sha256sum -c SHA256SUMS` checks them",
    }
    folders = {f"{parent.as_posix()}/" for name in facts.files for parent in PurePosixPath(name).parents}
    rows = [f"| `{name}` | {what} |" for name, what in contents.items() if not name.endswith("/") or set(name.split(", ")) & folders]
    return "\n".join(["| file | holds |", "|---|---|", *rows, "", "It contains no images of the data set, and no figures made from them."])


def _hardware(facts: RunFacts) -> str:
    hardware = facts.hardware
    cpu = f"{hardware['cores']} cores of {hardware['cpu'] or 'an unnamed CPU'}, {hardware['memory_gb']} GB of memory" if hardware else "not on record"
    gpus = ", ".join(hardware.get("gpus", ())) or "no GPU"
    return f"The networks were trained on: {cpu}; {gpus}."


def _software(facts: RunFacts) -> str:
    made = facts.provenance
    commit = f", commit {made['commit']}" if made.get("commit") else ""
    return f"""Python {made.get('python', '')} on {made.get('platform', '')}; cellsignal {made.get('cellsignal', '')}{commit}.

```bash
python -m venv environment && . environment/bin/activate && python -m pip install -r requirements.txt
```

The package itself needs no installation: it is found in this folder. On a machine with GPUs, PyTorch needs its CUDA driver."""


def _data(facts: RunFacts) -> str:
    task, preset = TASKS[facts.parameters.get("task", "rxrx1")], facts.parameters.get("preset")
    pretrained = facts.parameters.get("network", {}).get("pretrained")
    weights = "\n\nTraining from scratch begins with ImageNet weights, which are downloaded from the Hugging Face Hub." if pretrained == "imagenet" else ""
    if preset:
        return f"The run used simulated data (`{preset}`); `python -m prepare_data` draws them into RAW_DATA_DIR (`data`) again, byte for byte.{weights}"
    if not task.competition:
        folder = f"Put the data of the task {task.name} (`{task.identifying_tables[0][0]}` and its images) into the folder `data`, or name it as RAW_DATA_DIR"
        return f"{folder} in `{SETTINGS}`.{weights}"
    return f"""With the [Kaggle API](https://github.com/Kaggle/kaggle-api) and the competition's rules accepted, from this folder:

```bash
kaggle competitions download -c {task.competition} -p download && unzip -q download/{task.competition}.zip -d data
```

Any other place will do when RAW_DATA_DIR in `{SETTINGS}` names it. For way 1 below the tables (*.csv) are enough.{weights}"""


def _processing(facts: RunFacts) -> str:
    if facts.parameters.get("preset"):
        return "`python -m prepare_data` draws the plates. Images are standardised and augmented while they are read."
    return """```bash
python -m prepare_data
```

checks every row and every image; it changes nothing and overwrites nothing. Images are standardised and augmented
while they are read."""


def _build(facts: RunFacts) -> str:
    overwritten = [name for name in facts.files if name.startswith("run/") and name.count("/") == 1 and name != "run/recipe.json"]
    overwritten += [name for name in facts.files if is_fitted(name.removeprefix("run/"), [other.removeprefix("run/") for other in facts.files])]
    durations = {stage: _duration(seconds) for stage, seconds in facts.seconds.items()}
    return f"""Three ways to the submission. RUN_DIR (`run`) must be writable; no way changes RAW_DATA_DIR.

1) very fast prediction, from the stored scores: minutes, no image and no network needed

```bash
python -m predict --from scores
```

overwrites {', '.join(overwritten)}, the pages and figures about them in run/, and
submission/submission.csv.

2) ordinary prediction, from the stored weights: {durations['scores']}

```bash
python -m predict
```

overwrites run/scores/ and all that way 1 overwrites.

3) retrain from scratch, followed by 2: {durations['weights']} for the training

```bash
python -m train
```

overwrites run/weights/ and all that way 2 overwrites.

The original run/submission.csv has the SHA-256 `{facts.submission}`. Ways 1 and 2 end with these very
bytes on the same kind of machine with the same versions, and way 3 where training repeats itself there too. A way that
was killed goes on when it is called again."""


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not timed apart from the rest"
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s on the hardware above"
    return f"{f'{minutes} min' if minutes < 120 else f'{minutes / 60:.1f} h'} on the hardware above"
