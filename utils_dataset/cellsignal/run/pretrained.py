"""Where the weights are that a network begins with."""

from pathlib import Path

from cellsignal.errors import InputError
from cellsignal.learn.networks.pretrained import IMAGENET, download_imagenet, imagenet_file_name
from cellsignal.run import environment, mounts


def find_pretrained(source: str, backbone: str) -> Path:
    """The file of the weights that a network begins with: `source` is a path, or "imagenet".

    ImageNet's are `<backbone>.safetensors` in the current folder or in an attached input (`mounts.holding`), else they
    are downloaded. Raises InputError, which says what to attach, when there are none.
    """
    if source != IMAGENET:
        path = environment.default_data(source)
        if not path.is_file():
            raise InputError("no such weights", where=path, cure=f'name a .safetensors file, or {IMAGENET}, or set network.pretrained: ""')
        return path
    found = next(mounts.holding_file(imagenet_file_name(backbone)), None)
    return found or download_imagenet(backbone)
