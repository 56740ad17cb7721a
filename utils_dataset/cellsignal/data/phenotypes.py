"""What an siRNA does to a cell: from class number to the traits a cell is drawn with."""

import numpy as np

UNTREATED = 1138
POSITIVE_CONTROLS = range(1108, UNTREATED)

# Each trait and how far one unit of phenotype moves it, as a natural logarithm. All of them are shape,
# texture or place: none is brightness, because brightness is what the batch effects destroy.
TRAITS = {
    "nuclear_size": 0.13,
    "nuclear_elongation": 0.22,
    "nuclear_lobes": 0.84,
    "chromatin_grain": 0.42,
    "chromatin_contrast": 0.42,
    "nucleolus_number": 0.56,
    "nucleolus_size": 0.35,
    "er_reach": 0.35,
    "er_grain": 0.56,
    "er_contrast": 0.42,
    "mitochondria_reach": 0.42,
    "mitochondria_grain": 0.56,
    "mitochondria_polarity": 0.84,
    "fibre_spacing": 0.56,
    "fibre_disorder": 0.84,
    "fibre_share": 0.49,
    "golgi_distance": 0.56,
    "golgi_spread": 0.49,
    "golgi_fragments": 0.70,
    "vesicle_number": 0.56,
    "clumping": 0.84,
}
SHARED = 0.5  # part of a phenotype's variance that all cell types have in common
# How strongly a cell type shows a phenotype. Small crowded cells hide their texture; with these
# factors the four are about equally hard at the size of the preset `demo`.
RESPONSE = {"HEPG2": 1.45, "HUVEC": 0.85, "RPE": 1.2, "U2OS": 1.0}


def phenotype(seed: int, sirna: int, *, cell_type: str) -> np.ndarray:
    """The latent effect of one siRNA in one cell type: float64[traits]; untreated is 0."""
    if sirna == UNTREATED:
        return np.zeros(len(TRAITS))
    common = stream(seed, "phenotype", sirna).standard_normal(len(TRAITS))
    own = stream(seed, "phenotype", cell_type, sirna).standard_normal(len(TRAITS))
    return RESPONSE[cell_type] * (np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own)


def traits(latent: np.ndarray) -> dict[str, float]:
    """Factors on a cell type's normal traits; saturating, so that no cell is drawn absurd."""
    bounded = 2.5 * np.tanh(latent / 2.5)
    steps = np.fromiter(TRAITS.values(), float)
    return dict(zip(TRAITS, np.exp(steps * bounded).tolist(), strict=True))


def stream(*key: int | str) -> np.random.Generator:
    """A random generator that depends on `key` alone, never on the order or the process of a call."""
    words = [word for part in key for word in _words(part)]
    return np.random.default_rng(np.random.SeedSequence(words))


def _words(part: int | str) -> list[int]:
    # The length in front keeps ("a", "b") and ("ab",) apart.
    return [part] if isinstance(part, int) else [len(part), *part.encode()]
