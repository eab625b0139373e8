"""Strict configuration: schemas, recipes, overrides, and the origin of every value."""

from .recipe import Recipe, list_recipes, load_recipe
from .schema import Config, point, points
from .tree import merge

__all__ = ["Config", "Recipe", "list_recipes", "load_recipe", "merge", "point", "points"]
