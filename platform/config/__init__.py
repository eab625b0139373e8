"""Strict configuration: schemas, recipes, overrides, and the origin of every value."""

from .recipe import Recipe, list_recipes, load_recipe
from .schema import Config, point, points

__all__ = ["Config", "Recipe", "list_recipes", "load_recipe", "point", "points"]
