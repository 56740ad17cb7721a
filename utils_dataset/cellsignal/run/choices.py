"""What the parameters of a run that are names, or lists of names, may be."""

import re

# Spelt out, because learn.backbones would bring PyTorch; a test keeps the two equal.
BACKBONES = (
    "densenet121", "densenet161", "densenet201", "densenet-small", "densenet-deep-small", "resnet34", "resnet50", "resnet-small",
    "se-resnext50", "se-resnext-small", "vgg19", "vgg-small", "inception", "xception", "xception-small", "plain-cnn",
)  # fmt: skip
EXAMPLES = {
    "cell_types": "[HUVEC, U2OS]", "experiments": "[U2OS-01, U2OS-02]", "ensemble": "[densenet121]", "covariates": "[plate, site]",
    "scored": "[U2OS-03]", "runs": "[runs/demo, runs/second]",
}  # fmt: skip
COVARIATES = ("cell_type", "experiment", "plate", "well", "site")
LOSSES = ("bce", "cross-entropy", "focal", "lovasz", "arcface", "cosface")
TERM = re.compile(rf"\s*(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?\s+)?(?:{'|'.join(LOSSES)})\s*")
