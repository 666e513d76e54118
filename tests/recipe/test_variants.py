from __future__ import annotations

from typing import Any

import pytest

from tuneloop.base.errors import RecipeError
from tuneloop.cli.target import packaged
from tuneloop.recipe.recipe import dump, make_recipe, read_recipe
from tuneloop.recipe.variants import variants


def recipe(**compare: Any) -> Any:
    return make_recipe({"name": "x", "train": {"epochs": 2}, "compare": compare})[0]


def test_a_variant_has_what_it_says_otherwise_and_the_rest_as_it_was() -> None:
    every = variants(recipe(variants={"lora": {"lora": {"rank": 4}}, "full": {"method": "full"}}))
    assert (every["lora"].train.lora.rank, every["full"].train.method) == (4, "full")
    assert {one.train.epochs for one in every.values()} == {2.0}
    assert {one.name for one in every.values()} == {"x"}, "one dataset, one name"
    assert not any(one.compare.variants for one in every.values())
    assert every["full"].train.learning_rate == 3e-5, "a method's own rate follows from it"


def test_an_unknown_key_of_a_variant_is_named() -> None:
    with pytest.raises(RecipeError, match=r"compare\.variants\.small") as caught:
        variants(recipe(variants={"small": {"lora": {"rnk": 4}}}))
    assert "train.lora.rank" in str(caught.value)


def test_a_claim_about_no_variant_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"compare\.claims\.0\.against"):
        recipe(variants={"a": {}}, claims=[{"variant": "a", "against": "b"}])


def test_the_shipped_recipe_compares_lora_with_full_tuning() -> None:
    shipped, _ = read_recipe(packaged()["lora_vs_full"])
    every = variants(shipped)
    assert {name: one.train.method for name, one in every.items()} == {"lora": "lora", "full": "full"}
    claim = shipped.compare.claims[0]
    assert (claim.variant, claim.against, claim.cost, claim.loss) == ("lora", "full", 0.15, 0.03)
    assert "variants: {}" in dump(every["lora"])
