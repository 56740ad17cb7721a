"""How scores are made from pictures, and siRNAs from scores."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from cellsignal.settings import Settings


class PredictionSettings(Settings):
    """How the scores of wells are made."""

    statistics: Literal["running", "batch", "adapted"] = Field(
        "adapted", description="whose batch-normalisation statistics the prediction uses"
    )
    statistics_scope: Literal["plate", "experiment"] = Field("plate", description="wells that share statistics")
    smallest_batch: int = Field(32, ge=2, description="of the batches over whose sizes `batch` averages")
    largest_batch: int = Field(128, ge=2, description="of the batches over whose sizes `batch` averages")
    num_batch_sizes: int = Field(1, ge=1, description="sizes from smallest to largest batch; Brodt took all 97")
    tta_views: Literal[1, 2, 4, 8] = Field(1, description="flips and quarter turns of a picture whose answers are averaged")
    combine: Literal["mean", "max"] = Field("mean", description="of a site's probabilities in several views and networks (Protein Atlas)")
    prototype_weight: float = Field(0.0, ge=0, le=1, description="weight of the likeness to each siRNA's mean features; 0 means none")
    prototype_scale: float = Field(0.0, ge=0, description="by which likenesses become logits; 0 means fitted on held-out wells")

    subsets = {
        "wells": ("statistics", "statistics_scope", "smallest_batch", "largest_batch", "num_batch_sizes", "tta_views", "prototype_weight", "prototype_scale"),
        "labels": ("tta_views", "combine"),
    }

    @property
    def wells(self) -> "PredictionSettings":
        """What counts for wells of one siRNA each."""
        return self.subset("wells")

    @property
    def labels(self) -> "PredictionSettings":
        """What counts for sites with several labels."""
        return self.subset("labels")

    @property
    def batch_sizes(self) -> list[int]:
        """The sizes of the batches that `batch` averages over."""
        step = (self.largest_batch - self.smallest_batch) / max(self.num_batch_sizes - 1, 1)
        return [round(number * step + self.smallest_batch) for number in range(self.num_batch_sizes)]

    @field_validator("largest_batch")
    @classmethod
    def _at_least_the_smallest(cls, sites: int, info: ValidationInfo) -> int:
        if sites < info.data.get("smallest_batch", 0):
            raise ValueError(f"it is below smallest_batch, {info.data['smallest_batch']}")
        return sites


class AssignmentSettings(Settings):
    """How siRNAs, or labels, are chosen by the scores."""

    method: Literal["raw", "greedy", "exact", "expected"] = Field("expected", description="how siRNAs are chosen")
    plate_groups: bool = Field(True, description="allow only the siRNAs of a plate's group")
    rotation_prior: float = Field(0.99, gt=0, lt=1, description="probability that groups lie rotated as in training")
    min_group_posterior: float = Field(0.95, ge=0, lt=1, description="least probability at which groups are believed")
    known_layouts: bool = Field(False, description="solve an experiment outright whose controls repeat a known layout")
    thresholds: Literal["fitted", "shares", "half"] = Field("fitted", description="of the Protein Atlas: on held-out folds, by class shares, or 0.5")

    subsets = {
        "wells": ("method", "plate_groups", "rotation_prior", "min_group_posterior", "known_layouts"),
        "pseudo_labels": ("plate_groups", "rotation_prior", "min_group_posterior"),
    }

    @property
    def wells(self) -> "AssignmentSettings":
        """What counts for wells of one siRNA each."""
        return self.subset("wells")

    @property
    def pseudo_labels(self) -> "AssignmentSettings":
        """What counts for the wells that a network labels while it trains: plate groups, and the usual method."""
        return self.subset("pseudo_labels")
