"""What is trained, and what a grid compares beside allocations: which settings make no sense together."""

from typing import TYPE_CHECKING

from sublora.config.grid import ALL
from sublora.config.model import Model, is_whole, named_part
from sublora.subspace.allocations import Uniform
from sublora.subspace.projections import IDENTITY

if TYPE_CHECKING:
    from sublora.config.settings import Settings


def complaints(settings: "Settings") -> list[str]:
    """One line for each contradiction; empty if there is none."""
    own = f"{settings.subspace.adapt}-{settings.subspace.projection}"
    parts = (own,) if settings.grid.trained is None else settings.grid.trained
    found = _of_budgets(settings, parts) + _of_networks(settings, parts)
    return found if settings.grid.trained is not None else found + _of_allocations(settings)


def _of_budgets(settings: "Settings", parts: tuple[str, ...]) -> list[str]:
    budgets = settings.grid.budgets
    listed = ", ".join(map(str, budgets))
    if all(map(is_whole, parts)):
        if budgets == (ALL,):
            return []
        return [
            f"grid.budgets: with projection {IDENTITY} w is every trained parameter; expected [{ALL}], found [{listed}]"
        ]
    if ALL in budgets:
        return [
            f"grid.budgets: {ALL} is the budget of projection {IDENTITY}; {', '.join(parts)} need numbers, "
            f"found [{listed}]"
        ]
    return []


def _of_allocations(settings: "Settings") -> list[str]:
    """Allocations are what A and B are given of a subspace."""
    adapt, projection = settings.subspace.adapt, settings.subspace.projection
    split = [name for name in settings.grid.allocations if name != Uniform.mode]
    if not split or (adapt == "lora" and projection != IDENTITY):
        return []
    return [
        f"grid.allocations: with subspace.adapt {adapt} and projection {projection} there is nothing to divide between "
        f"A and B; expected {Uniform.mode} alone, found {', '.join(split)}"
    ]


def _of_networks(settings: "Settings", parts: tuple[str, ...]) -> list[str]:
    found = []
    if any(named_part(part)[0] == "weights" for part in parts):
        if not isinstance(settings.model, Model):
            found.append(f"adapt weights needs model.kind gpt2, found {settings.model.kind}")
        if settings.training.keep_initialization:
            found.append("training.keep_initialization writes files of adapters, and adapt weights has none; set false")
    if settings.grid.sizes is not None and settings.base.kind != "random":
        found.append(
            f"grid.sizes needs base.kind random, found {settings.base.kind}, which is a file of one size; set "
            "grid.sizes to null"
        )
    rates = settings.training.learning_rates or {}
    if unknown := [name for name in rates if name not in (settings.grid.trained or ())]:
        found.append(f"training.learning_rates: {', '.join(unknown)} is not in grid.trained")
    return found
