"""What the networks are trained to do."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from exporter.training.config import LossSettings
from exporter.training.model import Encoded, Network

FARTHEST = 1.6
"""How far from the middle the locator looks for a corner; the picture's edge is at 1."""


class LocatorLosses(NamedTuple):
    """Scalars of one batch of the locator; distances are relative to the map's size."""

    total: Tensor
    first: Tensor
    """Mean distance of the first network's corners."""

    last: Tensor
    """The same after the correction."""

    cells: Tensor
    """The same for the opinions of single cells, all guesses': a denser thing to learn from."""


class TowerLosses(NamedTuple):
    """Scalars of one batch of the tower."""

    total: Tensor
    contrast: Tensor
    koleo: Tensor
    picture: Tensor
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


def corner_loss(found: Tensor, truth: Tensor) -> Tensor:
    """Mean distance between corners (..., 4, 2), relative to the map's size.

    Nobody can tell how far out of the picture a corner is, so the truth ends there. What is off by
    the width of a small map is lost, what is off as much on a large one is nearly right; so the
    distance is divided by the size of the map, 1 where it fills the picture, and never by less
    than a quarter.
    """
    truth = truth.clamp(-FARTHEST, FARTHEST)
    reach = (truth - truth.mean(-2, keepdim=True)).norm(dim=-1).mean(-1, keepdim=True)
    distance = ((found - truth).square().sum(-1) + 1e-6).sqrt()
    return (distance / (0.25 + 0.75 * reach / math.sqrt(2))).mean()


def tower_loss(
    network: Network,
    small: Tensor,
    archive: Encoded,
    query: Encoded,
    weights: LossSettings,
) -> TowerLosses:
    """Weigh everything together.

    Args:
        network: Gives the temperature and the units of pixels.
        small: The maps, small: ``float32`` (n, 3, 16, 16) in 0..1.
        archive: What the network says of the views as posted.
        query: What the network says of the views that search.
        weights: Of the losses.
    """
    archive_unit = functional.normalize(archive.embeddings, dim=1)
    query_unit = functional.normalize(query.embeddings, dim=1)
    # Beyond 100 the loss only rewards confidence (Radford et al. clip it there as well).
    scale = network.log_scale.exp().clamp(max=100.0)
    contrast, accuracy = info_nce(query_unit, archive_unit, scale)
    spread = (koleo(archive_unit) + koleo(query_unit)) / 2
    truth = network.normalise(small)
    picture = (
        functional.mse_loss(archive.pictures, truth) + functional.mse_loss(query.pictures, truth)
    ) / 2
    total = contrast + weights.koleo * spread + weights.picture * picture
    return TowerLosses(total, contrast, spread, picture, accuracy)
