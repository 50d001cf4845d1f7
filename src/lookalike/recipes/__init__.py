"""Recipes: named configurations, those that ship and people's own, read and written as YAML."""

from lookalike.recipes.files import SHIPPED, find_recipe, read_recipe, shipped_text, summary
from lookalike.recipes.settings import (
    FREE_ON_RESUME,
    changed_on_resume,
    config_from,
    format_recipe,
    free_on_resume,
    knobs_by_group,
)

__all__ = [
    "FREE_ON_RESUME",
    "SHIPPED",
    "changed_on_resume",
    "config_from",
    "find_recipe",
    "format_recipe",
    "free_on_resume",
    "knobs_by_group",
    "read_recipe",
    "shipped_text",
    "summary",
]
