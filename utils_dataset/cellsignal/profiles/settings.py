"""Settings of the correction of profiles, and of what is measured on them."""

from typing import Literal

from pydantic import Field

from cellsignal.settings import Settings


class ProfileSettings(Settings):
    """How profiles are corrected, in this order: scale, centre, components, sphering; and how they are measured."""

    scale: Literal["none", "table"] = Field("table", description="`table`: each feature minus its mean, by its standard deviation, over all wells; units differ between features of CellProfiler")
    center: Literal["none", "controls", "plate"] = Field("controls", description="what each plate is centred on: its controls, or all its wells, which needs many different treatments on a plate")
    controls: Literal["negative", "all"] = Field("all", description="the controls used for centring and sphering; `all` takes the positive ones too, as plates of RxRx1 have a single untreated well")
    components: int = Field(32, ge=0, description="principal components that are kept; 0 keeps the features")
    sphering: Literal["none", "controls"] = Field("controls", description="`controls`: directions in which wells of the same control differ are shrunk (typical variation normalisation)")
    regularisation: float = Field(0.1, ge=0, description="added to each variance before sphering, as a share of the mean variance")
    permutations: int = Field(10_000, ge=99, le=1_000_000, description="size of each null distribution")
    significance: float = Field(0.05, gt=0, lt=1, description="largest p-value, corrected by Benjamini and Hochberg, that counts as found")
    seed: int = Field(0, ge=0, description="of the null distributions")
