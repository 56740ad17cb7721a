"""A few sites of noise with a pattern per class: enough to learn from in a second."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """The folder and the sites (32 px, 6 channels) of 2 experiments x 2 plates x 8 wells, 4 classes."""
    root, rng, rows = tmp_path_factory.mktemp("patches"), np.random.default_rng(0), []
    for experiment in ("HUVEC-01", "HUVEC-02"):
        for plate in (1, 2):
            gain = rng.uniform(0.4, 1.0, size=(6, 1, 1))
            for i in range(8):
                stem = f"train/{experiment}/Plate{plate}/B{i + 2:02d}_s1"
                image = rng.uniform(0, 80, (6, 32, 32))
                image[i % 4, ::2] += 150  # the class is a striped channel
                _write(root / stem, (image * gain).astype(np.uint8))
                rows.append({"experiment": experiment, "plate": plate, "well": f"B{i + 2:02d}", "site": 1, "stem": stem,
                             "sirna": i % 4 * 10, "well_type": "treatment", "id_code": f"{experiment}_{plate}_B{i + 2:02d}"})
    return root, pd.DataFrame(rows).astype({"sirna": "Int64"})


def _write(stem: Path, image: np.ndarray) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    for channel, picture in enumerate(image, 1):
        cv2.imwrite(f"{stem}_w{channel}.png", picture)
