"""Settings of prediction and assignment."""

from typing import Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator

from cellsignal.settings import Settings

STATISTICS = ("running", "batch", "adapted")  # always scored by the first network
Statistics = Literal["running", "batch", "adapted", "plate_with_controls", "controls", "auto"]
PLATE_STATISTICS = get_args(Statistics)


class PredictionSettings(Settings):
    """Settings of prediction."""

    statistics: Statistics = Field("adapted", description="batch-normalisation statistics: `running`, those of training; `batch`; `adapted`, of the plate's wells of the kinds in the training batches; `plate_with_controls`, of these and its controls; `controls`, of these alone; `auto` chooses by plate")
    statistics_scope: Literal["plate", "experiment"] = Field("plate", description="wells that share statistics")
    min_batch_size: int = Field(32, ge=2, description="smallest batch size over which `batch` averages")
    max_batch_size: int = Field(128, ge=2, description="largest batch size over which `batch` averages")
    num_batch_sizes: int = Field(1, ge=1, description="number of batch sizes from smallest to largest; Brodt took all 97")
    tta_views: Literal[1, 2, 4, 8] = Field(1, description="number of flips and rotations of an image whose scores are averaged")
    combine: Literal["mean", "max"] = Field("mean", description="how a site's probabilities in several views and networks are combined (Protein Atlas)")
    prototype_weight: float = Field(0.0, ge=0, le=1, description="weight of the similarity to each siRNA's mean features; 0 means none")
    prototype_scale: float = Field(0.0, ge=0, description="factor from similarities to logits; 0 means fitted on held-out wells")

    subsets = {
        "sites": ("statistics", "statistics_scope", "min_batch_size", "max_batch_size", "num_batch_sizes", "tta_views"),
        "wells": ("statistics", "statistics_scope", "min_batch_size", "max_batch_size", "num_batch_sizes", "tta_views", "prototype_weight", "prototype_scale"),
        "labels": ("tta_views", "combine"),
    }

    @property
    def wells(self) -> "PredictionSettings":
        """The settings for wells with one siRNA each."""
        return self.subset("wells")

    @property
    def sites(self) -> "PredictionSettings":
        """The settings for sites that are scored alone, with one class each."""
        return self.subset("sites")

    @property
    def labels(self) -> "PredictionSettings":
        """The settings for multi-label sites."""
        return self.subset("labels")

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes over which `batch` averages."""
        step = (self.max_batch_size - self.min_batch_size) / max(self.num_batch_sizes - 1, 1)
        return [round(number * step + self.min_batch_size) for number in range(self.num_batch_sizes)]

    @field_validator("tta_views", mode="before")
    @classmethod
    def _check_whole_number(cls, views: Any) -> Any:
        if type(views) is not int:  # a Literal compares by ==, and `tta_views: true` would be one view, which is none
            raise ValueError("input should be 1, 2, 4 or 8")
        return views

    @field_validator("max_batch_size")
    @classmethod
    def _at_least_the_smallest(cls, sites: int, info: ValidationInfo) -> int:
        if sites < info.data.get("min_batch_size", 0):
            raise ValueError(f"it is below min_batch_size, {info.data['min_batch_size']}")
        return sites


class AssignmentSettings(Settings):
    """Settings of the assignment of siRNAs, or labels, by the scores."""

    method: Literal["raw", "greedy", "exact", "expected"] = Field("expected", description="method of the assignment")
    plate_groups: bool = Field(True, description="allow only the siRNAs of a plate's group")
    rotation_prior: float = Field(0.99, gt=0, lt=1, description="prior probability that the plate groups are rotated as in training")
    min_group_posterior: float = Field(0.0, ge=0, lt=1, description="least posterior probability at which plate groups are used")
    known_layouts: bool = Field(False, description="copy the layout of an experiment whose controls repeat those of a training experiment")
    thresholds: Literal["fitted", "shares", "half"] = Field("fitted", description="thresholds of the Protein Atlas: fitted on held-out folds, by class shares, or 0.5")

    subsets = {
        "wells": ("method", "plate_groups", "rotation_prior", "min_group_posterior", "known_layouts"),
        "pseudo_labels": ("plate_groups", "rotation_prior", "min_group_posterior"),
    }

    @property
    def wells(self) -> "AssignmentSettings":
        """The settings for wells with one siRNA each."""
        return self.subset("wells")

    @property
    def pseudo_labels(self) -> "AssignmentSettings":
        """The settings for pseudo-labels: plate groups, and the default method."""
        return self.subset("pseudo_labels")
