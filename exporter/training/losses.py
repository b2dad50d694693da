"""What the network is trained to do."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from exporter.training.config import LossSettings
from exporter.training.model import PICTURE_CELLS, Encoded, Network
from exporter.training.views import Views


class Losses(NamedTuple):
    """Scalars of one batch."""

    total: Tensor
    contrast: Tensor
    koleo: Tensor
    picture: Tensor
    geometry: Tensor
    accuracy: Tensor
    """Fraction of queries whose own archive view is the nearest in the batch."""


def info_nce(queries: Tensor, archive: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE over in-batch negatives.

    A. van den Oord et al., "Representation Learning with Contrastive Predictive Coding" (2018);
    symmetric with a learnt temperature as in A. Radford et al., "Learning Transferable Visual
    Models From Natural Language Supervision" (2021).

    Args:
        queries: Unit vectors, ``float32`` (n, d).
        archive: Unit vectors of the same maps in the same order.
        scale: Inverse temperature.

    Returns:
        The loss, and the fraction of queries that find their own map first.
    """
    logits = scale * queries @ archive.T
    own = torch.arange(len(logits), device=logits.device)
    loss = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
    return loss, (logits.argmax(1) == own).float().mean()


def koleo(embeddings: Tensor) -> Tensor:
    """Kozachenko-Leonenko entropy: pushes each vector away from its nearest neighbour.

    A. Sablayrolles et al., "Spreading vectors for similarity search" (ICLR 2019); SSCD (E. Pizzi et
    al., CVPR 2022) shows that it makes one distance threshold work for all pictures.

    Args:
        embeddings: Unit vectors of different maps, ``float32`` (n, d).
    """
    with torch.no_grad():
        near = embeddings @ embeddings.T
        near.fill_diagonal_(-2)
        nearest = near.argmax(1)
    distance = (embeddings - embeddings[nearest]).norm(dim=1)
    return -torch.log(distance + 1e-4).mean()


def geometry_loss(predicted: Tensor, truth: Tensor) -> Tensor:
    """Where is the map, and which part of it does each patch show?

    Args:
        predicted: u, v and a logit of presence, ``float32`` (n, 3, cells, cells).
        truth: u, v and presence, see `views.Views.geometry`.
    """
    present = truth[:, 2]
    presence = functional.binary_cross_entropy_with_logits(predicted[:, 2], present)
    error = (predicted[:, :2] - truth[:, :2]).abs().sum(1)
    return presence + (error * present).sum() / present.sum().clamp(min=1.0)


def total_loss(
    network: Network,
    maps: Tensor,
    archive: tuple[Views, Encoded],
    query: tuple[Views, Encoded],
    weights: LossSettings,
) -> Losses:
    """Weigh everything together.

    Args:
        network: Gives the temperature and the units of pixels.
        maps: The rectified maps, ``float32`` (n, 3, h, w) in 0..1.
        archive: The views as posted, and what the network says of them.
        query: The views that search, and what the network says of them.
        weights: Of the losses.
    """
    (archive_views, archive_said), (query_views, query_said) = archive, query
    archive_unit = functional.normalize(archive_said.embeddings, dim=1)
    query_unit = functional.normalize(query_said.embeddings, dim=1)
    # Beyond 100 the loss only rewards confidence (Radford et al. clip it there as well).
    scale = network.log_scale.exp().clamp(max=100.0)
    contrast, accuracy = info_nce(query_unit, archive_unit, scale)
    spread = (koleo(archive_unit) + koleo(query_unit)) / 2
    small = functional.interpolate(
        network.normalise(maps), size=(PICTURE_CELLS, PICTURE_CELLS), mode="area"
    )
    picture = (
        functional.mse_loss(archive_said.pictures, small)
        + functional.mse_loss(query_said.pictures, small)
    ) / 2
    geometry = (
        geometry_loss(archive_said.geometry, archive_views.geometry)
        + geometry_loss(query_said.geometry, query_views.geometry)
    ) / 2
    total = (
        contrast + weights.koleo * spread + weights.picture * picture + weights.geometry * geometry
    )
    return Losses(total, contrast, spread, picture, geometry, accuracy)
