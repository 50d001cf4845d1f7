"""All verbs, in the order in which people meet them."""

from __future__ import annotations

from lookalike.cli import bench, check, compare, demo, embed, evaluate, export, recipes, train

VERBS = (
    train.VERB,
    evaluate.VERB,
    compare.VERB,
    embed.VERB,
    check.VERB,
    bench.VERB,
    export.VERB,
    recipes.VERB,
    demo.VERB,
)
