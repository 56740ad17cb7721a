"""Backbones by name: from images of any number of channels to pooled features."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.models import DenseNet, ResNet, inception_v3
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import make_layers
from torchvision.ops import SqueezeExcitation

from cellsignal.errors import InputError

TIMM = "timm:"
Body = tuple[nn.Module, int]  # from float[N, C, H, W] to pooled features [N, F], and F


@dataclass(frozen=True)
class Backbone:
    """How a body is built for a number of channels, the smallest images it takes, and where its ImageNet weights lie."""

    build: Callable[[int], Body]
    smallest: int = 32  # px; most halve their input five times
    hub: str = ""  # Hugging Face Hub repository with model.safetensors; "" where nobody trained it


def backbone(name: str) -> Backbone:
    """The backbone called `name`, or any network of timm as "timm:NAME"; InputError when there is none."""
    if name in BACKBONES:
        return BACKBONES[name]
    if not name.startswith(TIMM):
        known = ", ".join(BACKBONES)
        raise InputError(f"unknown backbone {name!r}", where="backbone", cure=f"use one of: {known}, or {TIMM}NAME for one of timm's")
    timm, network = _timm(), name.removeprefix(TIMM)
    if not timm.is_model(network):
        raise InputError(f"timm {timm.__version__} has no network {network!r}", where="backbone",
                         cure="timm.list_models() names those it has")
    settings = timm.get_pretrained_cfg(network)
    return Backbone(partial(_of_timm, network), hub=settings.hf_hub_id or "" if settings else "")


def stem_name(body: nn.Module) -> str:
    """The name of the first convolution of a body, which sees the channels."""
    return next(name for name, module in body.named_modules() if isinstance(module, nn.Conv2d))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError("this backbone is one of timm's, which is not installed", where="backbone",
                         cure="pip install timm, or choose a backbone of torchvision's") from error
    return timm


def _of_timm(network: str, channels: int) -> Body:
    body = _timm().create_model(network, pretrained=False, num_classes=0, in_chans=channels)
    # What the classifier would see: a few networks widen their features on the way to it.
    return body, getattr(body, "head_hidden_size", None) or body.num_features


def _for_channels(body: nn.Module, channels: int) -> nn.Module:
    """Give a body of torchvision, built for RGB, a stem for `channels`."""
    name = stem_name(body)
    place, _, own = name.rpartition(".")
    old = body.get_submodule(name)
    stem = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    nn.init.kaiming_normal_(stem.weight)
    setattr(body.get_submodule(place), own, stem)
    return body


def _densenet(channels: int, **anatomy: Any) -> Body:
    """Huang et al. 2017; DenseNet121 is the backbone of Brodt's solution, 161 and 201 of the first place's."""
    body = _for_channels(DenseNet(**anatomy, num_classes=1), channels)
    features, body.classifier = body.classifier.in_features, nn.Identity()
    return body, features


def _resnet(channels: int, *, block: type[nn.Module], layers: list[int]) -> Body:
    """He et al. 2016; Surin's first backbone, Moreau's feature extractor."""
    body = _for_channels(ResNet(block, layers, num_classes=1), channels)
    features, body.fc = body.fc.in_features, nn.Identity()
    return body, features


def _inception(channels: int) -> Body:
    """Inception v3 (Szegedy et al. 2016), without the auxiliary classifier."""
    body = _for_channels(inception_v3(weights=None, aux_logits=False, init_weights=True, dropout=0.0), channels)
    features, body.fc = body.fc.in_features, nn.Identity()
    return body, features


class _Pooled(nn.Sequential):
    """Convolutions called `features`, and their mean over the image."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images).mean((2, 3))


def _vgg(channels: int, *, layers: list[int | str]) -> Body:
    """Simonyan & Zisserman 2015 with batch normalisation; pooled over the image instead of three wide layers."""
    return _Pooled(_for_channels(make_layers(layers, batch_norm=True), channels)), layers[-2]


def _plain_cnn(channels: int) -> Body:
    """The vanilla CNN of Moreau's proposal, his benchmark: three convolutions of 2 px, no normalisation."""
    layers, width = [], channels
    for wider in (16, 32, 64):
        layers += [nn.Conv2d(width, wider, 2), nn.ReLU(), nn.MaxPool2d(2)]
        width = wider
    return _Pooled(nn.Sequential(*layers)), width


def _stem(channels: int, width: int) -> list[nn.Module]:
    """A quarter of the side, as the stems of ResNets."""
    convolution = nn.Conv2d(channels, width, 7, 2, 3, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]


def _staged(channels: int, widths: tuple[int, ...], block: Callable[[int, int, int], nn.Module]) -> Body:
    """A stem and one block a stage, `block(width in, width out, stride)`, each stage but the first half as large as the last."""
    layers, width = _stem(channels, widths[0]), widths[0]
    for stage, wider in enumerate(widths):
        layers.append(block(width, wider, 1 + (stage > 0)))
        width = wider
    body = _Pooled(nn.Sequential(*layers))
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body, width


def _shortcut(width: int, wider: int, stride: int) -> nn.Module | None:
    if width == wider and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(width, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))


def _basic(width: int, wider: int, stride: int) -> nn.Module:
    return BasicBlock(width, wider, stride, _shortcut(width, wider, stride))


def _squeezed(width: int, wider: int, stride: int) -> nn.Module:
    """A ResNeXt block of eight groups whose channels are weighed before they join (Hu et al. 2018)."""
    block = Bottleneck(width, wider // 4, stride, _shortcut(width, wider, stride), groups=8, base_width=16)
    block.bn3 = nn.Sequential(block.bn3, SqueezeExcitation(wider, wider // 16))
    return block


class _Separable(nn.Module):
    """Two depthwise separable convolutions beside a shortcut (Chollet 2017)."""

    def __init__(self, width: int, wider: int, stride: int) -> None:
        super().__init__()
        layers = [_separable(width, wider), nn.ReLU(), _separable(wider, wider)]
        self.layers = nn.Sequential(*layers, *([nn.MaxPool2d(3, 2, 1)] if stride > 1 else []))
        self.shortcut = _shortcut(width, wider, stride) or nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layers(images) + self.shortcut(images))


def _separable(width: int, wider: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.Conv2d(width, wider, 1, bias=False),
                         nn.BatchNorm2d(wider))


def _densenet_of(growth: int, blocks: tuple[int, ...], stem: int) -> Callable[[int], Body]:
    return partial(_densenet, growth_rate=growth, block_config=blocks, num_init_features=stem)


VGG19 = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]
# The small ones have the anatomy of their family at a price that a CPU core can pay: 0.2-0.6 M weights.
BACKBONES: dict[str, Backbone] = {
    "densenet121": Backbone(_densenet_of(32, (6, 12, 24, 16), 64), hub="timm/densenet121.tv_in1k"),
    "densenet161": Backbone(_densenet_of(48, (6, 12, 36, 24), 96), hub="timm/densenet161.tv_in1k"),
    "densenet201": Backbone(_densenet_of(32, (6, 12, 48, 32), 64), hub="timm/densenet201.tv_in1k"),
    "densenet-small": Backbone(_densenet_of(16, (2, 4, 6, 4), 32)),
    "densenet-deep-small": Backbone(_densenet_of(14, (3, 6, 12, 8), 32)),
    "resnet34": Backbone(partial(_resnet, block=BasicBlock, layers=[3, 4, 6, 3]), hub="timm/resnet34.tv_in1k"),
    "resnet50": Backbone(partial(_resnet, block=Bottleneck, layers=[3, 4, 6, 3]), hub="timm/resnet50.tv_in1k"),
    "resnet-small": Backbone(partial(_staged, widths=(16, 32, 64, 128), block=_basic)),
    "se-resnext50": Backbone(partial(_of_timm, "seresnext50_32x4d"), hub="timm/seresnext50_32x4d.gluon_in1k"),
    "se-resnext-small": Backbone(partial(_staged, widths=(64, 128, 256, 512), block=_squeezed)),
    "vgg19": Backbone(partial(_vgg, layers=VGG19), hub="timm/vgg19_bn.tv_in1k"),
    "vgg-small": Backbone(partial(_vgg, layers=[16, "M", 32, "M", 64, 64, "M", 128, 128, "M"])),
    "inception": Backbone(_inception, smallest=75, hub="timm/inception_v3.tv_in1k"),
    "xception": Backbone(partial(_of_timm, "legacy_xception"), smallest=64, hub="timm/legacy_xception.tf_in1k"),
    "xception-small": Backbone(partial(_staged, widths=(32, 64, 128, 256), block=_Separable)),
    "plain-cnn": Backbone(_plain_cnn),
}
