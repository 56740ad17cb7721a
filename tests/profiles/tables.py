"""Small tables of profiles for the tests beside this file."""

import numpy as np
import pandas as pd


def make_table(
    *, batches: int = 3, plates: int = 2, treatments: int = 8, untreated: int = 4, positive: int = 0, features: int = 6, effect: float = 3.0,
    plate_effect: float = 2.0, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Wells of a design in which each plate has each treatment once, in another order; features = treatment + plate + noise."""
    random = np.random.default_rng(seed)
    names = [*[f"t{number}" for number in range(treatments)], *["untreated"] * untreated, *[f"p{number}" for number in range(positive)]]
    types = ["treatment"] * treatments + ["negcon"] * untreated + ["poscon"] * positive
    means = {name: np.zeros(features) if name == "untreated" else effect * random.normal(size=features) for name in dict.fromkeys(names)}
    rows = []
    for batch in range(batches):
        for plate in range(plates):
            offset = plate_effect * random.normal(size=features)
            positions = random.permutation(len(names))
            for name, kind, position in zip(names, types, positions):
                values = means[name] + offset + random.normal(size=features)
                rows.append([f"batch-{batch}", str(plate), f"W{position:02}", name, kind, *values])
    columns = [f"Metadata_{name}" for name in ("Batch", "Plate", "Well", "Perturbation", "Control_Type")]
    return pd.DataFrame(rows, columns=[*columns, *[f"embedding_{number}" for number in range(features)]])
