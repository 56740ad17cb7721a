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
    """How to build a body for a number of channels, its smallest image size, and the repository of its ImageNet weights."""

    build: Callable[[int], Body]
    min_image_size: int = 32  # px; most backbones halve their input five times
    hub_repository: str = ""  # Hugging Face Hub repository with model.safetensors; "" without ImageNet weights


def get_backbone(name: str) -> Backbone:
    """The backbone called `name`, or any network of timm as "timm:NAME"; InputError for an unknown name."""
    if name in BACKBONES:
        return BACKBONES[name]
    if not name.startswith(TIMM):
        known = ", ".join(BACKBONES)
        raise InputError(f"unknown backbone {name!r}", where="backbone", cure=f"use one of: {known}, or {TIMM}NAME for one of timm's")
    timm, network = _timm(), name.removeprefix(TIMM)
    if not timm.is_model(network):
        raise InputError(f"timm {timm.__version__} has no network {network!r}", where="backbone",
                         cure="timm.list_models() lists its networks")
    settings = timm.get_pretrained_cfg(network)
    return Backbone(partial(_timm_body, network), hub_repository=settings.hf_hub_id or "" if settings else "")


def stem_name(body: nn.Module) -> str:
    """The name of the first convolution of a body, whose input is the image."""
    return next(name for name, module in body.named_modules() if isinstance(module, nn.Conv2d))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError("this backbone is one of timm's, which is not installed", where="backbone",
                         cure="pip install timm, or choose a backbone of torchvision's") from error
    return timm


def _timm_body(network: str, channels: int) -> Body:
    body = _timm().create_model(network, pretrained=False, num_classes=0, in_chans=channels)
    # The width before the classifier; a few networks widen their features in between.
    return body, getattr(body, "head_hidden_size", None) or body.num_features


def _replace_stem(body: nn.Module, channels: int) -> nn.Module:
    """Replace the stem of a torchvision body, built for RGB, by one for `channels`."""
    name = stem_name(body)
    parent, _, attribute = name.rpartition(".")
    old = body.get_submodule(name)
    stem = nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    nn.init.kaiming_normal_(stem.weight)
    setattr(body.get_submodule(parent), attribute, stem)
    return body


def _densenet(channels: int, **options: Any) -> Body:
    """Huang et al. 2017; DenseNet121 is the backbone of Brodt's solution, 161 and 201 of the first place's."""
    body = _replace_stem(DenseNet(**options, num_classes=1), channels)
    features, body.classifier = body.classifier.in_features, nn.Identity()
    return body, features


def _resnet(channels: int, *, block: type[nn.Module], layers: list[int]) -> Body:
    """He et al. 2016; Surin's first backbone, Moreau's feature extractor."""
    body = _replace_stem(ResNet(block, layers, num_classes=1), channels)
    features, body.fc = body.fc.in_features, nn.Identity()
    return body, features


def _inception(channels: int) -> Body:
    """Inception v3 (Szegedy et al. 2016), without the auxiliary classifier."""
    body = _replace_stem(inception_v3(weights=None, aux_logits=False, init_weights=True, dropout=0.0), channels)
    features, body.fc = body.fc.in_features, nn.Identity()
    return body, features


class _Pooled(nn.Sequential):
    """Convolutions called `features`, and global average pooling."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features(images).mean((2, 3))


def _vgg(channels: int, *, layers: list[int | str]) -> Body:
    """Simonyan & Zisserman 2015 with batch normalisation; pooled over the image instead of three wide layers."""
    return _Pooled(_replace_stem(make_layers(layers, batch_norm=True), channels)), layers[-2]


def _plain_cnn(channels: int) -> Body:
    """The vanilla CNN of Moreau's proposal, his benchmark: three convolutions of 2 px, no normalisation."""
    layers, in_channels = [], channels
    for out_channels in (16, 32, 64):
        layers += [nn.Conv2d(in_channels, out_channels, 2), nn.ReLU(), nn.MaxPool2d(2)]
        in_channels = out_channels
    return _Pooled(nn.Sequential(*layers)), in_channels


def _staged_body(channels: int, widths: tuple[int, ...], block: Callable[[int, int, int], nn.Module]) -> Body:
    """A ResNet's stem and one block per stage, `block(in_channels, out_channels, stride)`; each stage but the first halves the resolution."""
    in_channels = widths[0]
    layers: list[nn.Module] = [nn.Conv2d(channels, in_channels, 7, 2, 3, bias=False), nn.BatchNorm2d(in_channels), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for stage, out_channels in enumerate(widths):
        layers.append(block(in_channels, out_channels, 1 + (stage > 0)))
        in_channels = out_channels
    body = _Pooled(nn.Sequential(*layers))
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body, in_channels


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if in_channels == out_channels and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def _basic_block(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return BasicBlock(in_channels, out_channels, stride, _shortcut(in_channels, out_channels, stride))


def _squeeze_excitation_block(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """A ResNeXt block of eight groups with squeeze-and-excitation (Hu et al. 2018)."""
    block = Bottleneck(in_channels, out_channels // 4, stride, _shortcut(in_channels, out_channels, stride), groups=8, base_width=16)
    block.bn3 = nn.Sequential(block.bn3, SqueezeExcitation(out_channels, out_channels // 16))
    return block


class _SeparableBlock(nn.Module):
    """Two depthwise separable convolutions with a shortcut (Chollet 2017)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        layers = [_separable_convolution(in_channels, out_channels), nn.ReLU(), _separable_convolution(out_channels, out_channels)]
        self.layers = nn.Sequential(*layers, *([nn.MaxPool2d(3, 2, 1)] if stride > 1 else []))
        self.shortcut = _shortcut(in_channels, out_channels, stride) or nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layers(images) + self.shortcut(images))


def _separable_convolution(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False), nn.Conv2d(in_channels, out_channels, 1, bias=False),
                         nn.BatchNorm2d(out_channels))


def _densenet_builder(growth: int, blocks: tuple[int, ...], stem: int) -> Callable[[int], Body]:
    return partial(_densenet, growth_rate=growth, block_config=blocks, num_init_features=stem)


VGG19 = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"]
# The small ones have the architecture of their family with 0.2-0.6 M weights, which a CPU core can train.
BACKBONES: dict[str, Backbone] = {
    "densenet121": Backbone(_densenet_builder(32, (6, 12, 24, 16), 64), hub_repository="timm/densenet121.tv_in1k"),
    "densenet161": Backbone(_densenet_builder(48, (6, 12, 36, 24), 96), hub_repository="timm/densenet161.tv_in1k"),
    "densenet201": Backbone(_densenet_builder(32, (6, 12, 48, 32), 64), hub_repository="timm/densenet201.tv_in1k"),
    "densenet-small": Backbone(_densenet_builder(16, (2, 4, 6, 4), 32)),
    "densenet-deep-small": Backbone(_densenet_builder(14, (3, 6, 12, 8), 32)),
    "resnet34": Backbone(partial(_resnet, block=BasicBlock, layers=[3, 4, 6, 3]), hub_repository="timm/resnet34.tv_in1k"),
    "resnet50": Backbone(partial(_resnet, block=Bottleneck, layers=[3, 4, 6, 3]), hub_repository="timm/resnet50.tv_in1k"),
    "resnet-small": Backbone(partial(_staged_body, widths=(16, 32, 64, 128), block=_basic_block)),
    "se-resnext50": Backbone(partial(_timm_body, "seresnext50_32x4d"), hub_repository="timm/seresnext50_32x4d.gluon_in1k"),
    "se-resnext-small": Backbone(partial(_staged_body, widths=(64, 128, 256, 512), block=_squeeze_excitation_block)),
    "vgg19": Backbone(partial(_vgg, layers=VGG19), hub_repository="timm/vgg19_bn.tv_in1k"),
    "vgg-small": Backbone(partial(_vgg, layers=[16, "M", 32, "M", 64, 64, "M", 128, 128, "M"])),
    "inception": Backbone(_inception, min_image_size=75, hub_repository="timm/inception_v3.tv_in1k"),
    "xception": Backbone(partial(_timm_body, "legacy_xception"), min_image_size=64, hub_repository="timm/legacy_xception.tf_in1k"),
    "xception-small": Backbone(partial(_staged_body, widths=(32, 64, 128, 256), block=_SeparableBlock)),
    "plain-cnn": Backbone(_plain_cnn),
}
