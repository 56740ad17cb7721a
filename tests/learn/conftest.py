"""A few sites of noise with a pattern per class: enough to learn from in a second."""

from pathlib import Path

import pandas as pd
import pytest
from trainings import write_patches


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """The folder and the sites (32 px, 6 channels) of 2 experiments x 2 plates x 8 wells, 4 classes."""
    return write_patches(tmp_path_factory.mktemp("patches"))
