"""How a machine is measured."""

from pydantic import Field

from cellsignal.settings import Settings


class MeasurementSettings(Settings):
    """With which sites, and how often, each thing is measured."""

    sites: int = Field(64, ge=2, multiple_of=2, description="an even number; where there are fewer, turned copies fill up")
    image_size: int = Field(512, ge=16, description="side of drawn sites, in px")
    network_size: int = Field(0, ge=0, description="side of what the network sees, in px; 0: as stored on a GPU, 64 on a CPU")
    rounds: int = Field(5, ge=1, description="measurements of each thing, in another order every time")
    seconds: float = Field(1.0, ge=0, description="that each measurement lasts at least")
