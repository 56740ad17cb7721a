"""ImageNet weights for bodies with any number of channels."""

import math
from pathlib import Path

import torch

from cellsignal.errors import InputError
from cellsignal.files import sha256
from cellsignal.learn.networks.backbones import get_backbone, stem_name
from cellsignal.learn.networks.classifier import HEAD_PREFIX, Classifier, read_tensors

IMAGENET = "imagenet"
BODY_PREFIX = "body."
# Names of the classifiers in torchvision and timm, whose ImageNet classes are not needed here.
CLASSIFIER_MODULES = {"classifier", "fc", "head", "head_fc", "last_linear", "pre_logits", "AuxLogits"}
COUNTER_SUFFIX = "num_batches_tracked"  # missing in older files, and not used here


def imagenet_file_name(name: str) -> str:
    """The file name of the ImageNet weights of the backbone `name` in an attached data set."""
    return f"{name.replace(':', '-')}.safetensors"


def download_imagenet(name: str) -> Path:
    """Download the ImageNet weights of the backbone `name` from the Hugging Face Hub into its cache; returns their path.

    Raises InputError, which says what to attach instead, if there are none or the download fails.
    """
    repository = get_backbone(name).hub_repository
    if not repository:
        raise InputError(f"there are no ImageNet weights of the {name}", where="pretrained",
                         cure=f'attach {imagenet_file_name(name)}, choose another backbone, or set pretrained: "" to train from scratch')
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # of the library, the connection, the hub or the disk; the cure is the same
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        cure = (f"download model.safetensors from https://huggingface.co/{repository}, call it {imagenet_file_name(name)} and attach it as a data set "
                f'(or put it into the current folder), or set pretrained: "" to train from scratch')
        raise InputError(f"the ImageNet weights of the {name} cannot be downloaded ({reason})", where="pretrained", cure=cure) from None


def load_pretrained(model: Classifier, path: Path) -> str:
    """Load the weights of the body from a .safetensors file of timm, of torchvision or of this package.

    The filters of the stem are adapted to the network's channels (`adapt_stem`), classifiers are ignored, and everything else
    must fit. Returns the SHA-256 of the file, which becomes the network's origin. Raises InputError if the file is missing, is
    no safetensors file, or does not fit.
    """
    target, source = model.body.state_dict(), _body_weights(_read_weights(path))
    stem = f"{stem_name(model.body)}.weight"
    if stem in source and source[stem].ndim == 4:
        source[stem] = adapt_stem(source[stem], model.channels)
    source = {name: tensor for name, tensor in source.items() if name in target or name.partition(".")[0] not in CLASSIFIER_MODULES}
    misfits = sorted(name for name in target.keys() | source.keys() if not _weight_fits(name, target, source))
    if misfits:
        what = f"does not fit the {model.settings.backbone}: {len(misfits)} weights differ, the first is {misfits[0]}"
        raise InputError(what, where=path, cure='give it weights of this backbone, or set pretrained: "" to train from scratch')
    model.body.load_state_dict(source, strict=False)  # checked above, except for the counters
    model.origin = sha256(path)
    return model.origin


def adapt_stem(filters: torch.Tensor, channels: int) -> torch.Tensor:
    """Filters [O, I, h, w] for another number of channels, with outputs of about the same size.

    They are repeated and scaled by I / channels, or summed for one channel, as in timm's `adapt_input_conv` by Wightman.
    """
    source_channels = filters.shape[1]
    if channels == source_channels:
        return filters
    if channels == 1:
        return filters.sum(1, keepdim=True)
    return filters.repeat(1, math.ceil(channels / source_channels), 1, 1)[:, :channels] * (source_channels / channels)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not Path(path).is_file():
        raise InputError("no such weights", where=path, cure='name a .safetensors file, or set pretrained: ""')
    return read_tensors(path, cure="download it again")


def _body_weights(source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of the body, whose names begin with `body.` in files of this package."""
    if not any(name.startswith(BODY_PREFIX) for name in source):
        return source
    return {name.removeprefix(BODY_PREFIX): tensor for name, tensor in source.items() if not name.startswith(HEAD_PREFIX)}


def _weight_fits(name: str, target: dict[str, torch.Tensor], source: dict[str, torch.Tensor]) -> bool:
    if name not in source:
        return name.endswith(COUNTER_SUFFIX)
    return name in target and target[name].shape == source[name].shape
