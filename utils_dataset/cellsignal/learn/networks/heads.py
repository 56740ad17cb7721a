"""Heads on pooled features: linear heads, one for all or one per cell type, and a cosine head."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

from cellsignal.errors import InputError
from cellsignal.learn.settings import NetworkSettings

COSINE_SCALE = 30.0  # from cosines to logits; ArcFace and CosFace are trained with a similar value


class Head(nn.Module):
    """Logits [N, classes] from features [N, F], covariates and the features of controls.

    `settings.heads`: "shared", one linear head; "cell_type", one for each cell type, selected by the covariates; "both", their
    sum. `settings.cosine_head`: "none", "auxiliary" (prototypes for the loss only: Sypetkowski) or "only" (the logits are
    COSINE_SCALE times the cosines). `settings.control_features`: the input is cat(x, x*p, x*n, x*p*n), where p and n are mean
    features of positive and negative controls (Brodt's list of what was not better). `levels`: of each covariate, by name.
    """

    def __init__(self, settings: NetworkSettings, features: int, classes: int, *, levels: Mapping[str, Sequence[str]] = {}) -> None:
        super().__init__()
        self.kind, self.cosine_head, self.control_features = settings.heads, settings.cosine_head, settings.control_features
        sizes, names = {name: len(values) for name, values in levels.items()}, list(levels)
        self.cell_types = sizes.get("cell_type", 0)
        self.cell_type_column = sum(sizes[name] for name in names[:names.index("cell_type")]) if "cell_type" in names else 0
        inputs = features * (4 if self.control_features else 1) + sum(sizes.values())
        self.dropout = nn.Dropout(settings.dropout)
        self.weight = self.bias = self.own_weight = self.own_bias = self.prototypes = None
        if self.cosine_head != "only" and self.kind != "cell_type":
            self.weight, self.bias = nn.Linear(inputs, classes).weight, nn.Parameter(torch.zeros(classes))
        if self.cosine_head != "only" and self.kind != "shared":
            self.own_weight = nn.Parameter(torch.stack([nn.Linear(inputs, classes).weight.detach() for _ in range(self.cell_types)]))
            self.own_bias = nn.Parameter(torch.zeros(self.cell_types, classes))
        if self.cosine_head != "none":
            self.prototypes = nn.Parameter(nn.init.xavier_uniform_(torch.empty(classes, features)))

    def forward(self, features: torch.Tensor, covariates: torch.Tensor | None = None,
                references: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        """`covariates`: [N, D], shares for mixed sites; `references`: p and n, [F] or [N, F]."""
        if self.cosine_head == "only":
            return COSINE_SCALE * self.cosines(features)
        if not self.control_features:
            return self._linear(features, covariates)
        with torch.autocast(features.device.type, enabled=False):  # a product of three features overflows fp16 if each is above 40
            return self._linear(_control_features(features.to(next(self.parameters())), references), covariates)

    def _linear(self, features: torch.Tensor, covariates: torch.Tensor | None) -> torch.Tensor:
        inputs = self.dropout(features)
        if covariates is not None:
            inputs = torch.cat([inputs, covariates.to(inputs, non_blocking=True)], dim=1)
        if self.kind == "shared":
            return functional.linear(inputs, self.weight, self.bias)
        logits = self._cell_type_logits(inputs, covariates[:, self.cell_type_column:self.cell_type_column + self.cell_types].to(inputs, non_blocking=True))
        return logits if self.kind == "cell_type" else logits + functional.linear(inputs, self.weight, self.bias)

    def _cell_type_logits(self, inputs: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Logits of the heads of the cell types, weighted by their shares; the share of unknown cell types is distributed evenly."""
        shares = shares + (1 - shares.sum(1, keepdim=True)) / self.cell_types
        logits = functional.linear(inputs, self.own_weight.flatten(0, 1), self.own_bias.flatten())
        return (logits.view(len(inputs), self.cell_types, -1) * shares[:, :, None]).sum(1)

    def cosines(self, features: torch.Tensor) -> torch.Tensor:
        """Cosines between features [N, F] and the prototypes of the classes, [N, classes]; fp32, because margins are small."""
        if self.prototypes is None:
            raise InputError("this network has no cosine head", where="cosine_head", cure='build it with cosine_head: "auxiliary" or "only"')
        with torch.autocast(features.device.type, enabled=False):
            return functional.linear(functional.normalize(features.to(self.prototypes)), functional.normalize(self.prototypes))


def _control_features(features: torch.Tensor, references: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    if references is None:
        raise InputError("this network needs the controls of each site's plate", where="control_features",
                         cure="give it their mean features, or train one without control features")
    positive, negative = (reference.to(features) for reference in references)
    product = features * positive
    return torch.cat([features, product, features * negative, product * negative], dim=1)
