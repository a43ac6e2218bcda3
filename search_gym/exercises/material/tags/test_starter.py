"""Tests that you can see. ``search-gym exercise check`` has more, with other inputs for every student."""

import numpy as np
from starter import info_mask, loss_mask, parse_turn, turn_length


def test_a_search_and_an_answer():
    assert parse_turn("<think> I need her birthplace. </think> <search> Ada birthplace </search>") == (
        "search",
        "Ada birthplace",
    )
    assert parse_turn("<answer>\nLondon\n</answer>") == ("answer", "London")


def test_without_a_closed_pair_the_turn_is_invalid():
    for text in ("", "London", "<answer> London", "<search> x </answer>", "<Search> x </Search>"):
        assert parse_turn(text) == ("invalid", "")


def test_the_first_pair_counts():
    assert parse_turn("<search> a </search> <answer> b </answer>") == ("search", "a")


def test_a_turn_ends_with_the_token_that_completes_a_tag():
    assert turn_length(["<search>", " a", " </", "search", ">\n", "more"]) == 5
    assert turn_length(["no", " tag"]) == 2


def test_masks():
    spans = [("prompt", 0, 2), ("action", 2, 3), ("observation", 3, 5), ("action", 5, 6)]
    assert loss_mask(spans, 7).tolist() == [False, False, True, False, False, True, False]
    assert info_mask(spans, 7).tolist() == [False, False, False, True, True, False, False]
    assert loss_mask(spans, 7).dtype == np.bool_
