"""ImageNet weights under a stem for any number of channels."""

import math
from pathlib import Path

import torch

from cellsignal.errors import InputError
from cellsignal.files import sha256
from cellsignal.learn.networks.backbones import backbone, stem_name
from cellsignal.learn.networks.classifier import HEAD, Classifier, read_tensors

IMAGENET = "imagenet"
BODY = "body."
# What classifiers are called in torchvision and timm; ImageNet's thousand classes are none of ours.
CLASSIFIERS = {"classifier", "fc", "head", "head_fc", "last_linear", "pre_logits", "AuxLogits"}
COUNTER = "num_batches_tracked"  # older files lack it, and nothing here reads it


def file_name(name: str) -> str:
    """What the ImageNet weights of the backbone `name` are called where they are attached."""
    return f"{name.replace(':', '-')}.safetensors"


def download(name: str) -> Path:
    """The ImageNet weights of the backbone `name` from the Hugging Face Hub, kept in its cache.

    Raises InputError, which says what to attach and where, when there are none or they cannot be had.
    """
    hub = backbone(name).hub
    if not hub:
        raise InputError(f"nobody has trained the {name} on ImageNet", where="pretrained",
                         cure=f'attach {file_name(name)}, choose another backbone, or set pretrained: "" to train from scratch')
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(hub, "model.safetensors"))
    except Exception as error:  # whatever is wrong with the library, the network, the hub or the disk, the cure is one
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        cure = (f"download model.safetensors from https://huggingface.co/{hub}, call it {file_name(name)} and attach it as a data set "
                f'(or put it into the current folder), or set pretrained: "" to train from scratch')
        raise InputError(f"the ImageNet weights of the {name} cannot be downloaded ({reason})", where="pretrained", cure=cure) from None


def load_pretrained(model: Classifier, path: Path) -> str:
    """Take the weights of the body from a .safetensors file: of timm or torchvision, or of another network of ours.

    The stem's filters are adapted from the file's channels to the network's (`adapted_stem`), classifiers are left out, and
    everything else must fit. Returns the SHA-256 of the file, which is the network's new origin. Raises InputError when the
    file is missing, is no safetensors, or does not fit.
    """
    own, found = model.body.state_dict(), _body_of(_read(path))
    stem = f"{stem_name(model.body)}.weight"
    if stem in found and found[stem].ndim == 4:
        found[stem] = adapted_stem(found[stem], model.channels)
    found = {name: tensor for name, tensor in found.items() if name in own or name.partition(".")[0] not in CLASSIFIERS}
    wrong = sorted(name for name in own.keys() | found.keys() if not _fits(name, own, found))
    if wrong:
        what = f"does not fit the {model.settings.backbone}: {len(wrong)} weights differ, the first is {wrong[0]}"
        raise InputError(what, where=path, cure='give it weights of this backbone, or set pretrained: "" to train from scratch')
    model.body.load_state_dict(found, strict=False)  # strict but for the counters
    model.origin = sha256(path)
    return model.origin


def adapted_stem(filters: torch.Tensor, channels: int) -> torch.Tensor:
    """Filters [O, I, h, w] for another number of channels, which answers about as strongly.

    They are repeated and scaled by I / channels, for one channel summed: Wightman's `adapt_input_conv` in timm.
    """
    known = filters.shape[1]
    if channels == known:
        return filters
    if channels == 1:
        return filters.sum(1, keepdim=True)
    return filters.repeat(1, math.ceil(channels / known), 1, 1)[:, :channels] * (known / channels)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not Path(path).is_file():
        raise InputError("no such weights", where=path, cure='name a .safetensors file, or set pretrained: ""')
    return read_tensors(path, cure="download it again")


def _body_of(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of a body's weights in a file of ours begin with `body.`."""
    if not any(name.startswith(BODY) for name in found):
        return found
    return {name.removeprefix(BODY): tensor for name, tensor in found.items() if not name.startswith(HEAD)}


def _fits(name: str, own: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> bool:
    if name not in found:
        return name.endswith(COUNTER)
    return name in own and own[name].shape == found[name].shape
