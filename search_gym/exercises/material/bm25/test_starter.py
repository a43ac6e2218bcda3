"""Tests that you can see. ``search-gym exercise check`` has more, with other documents for every student."""

import numpy as np
from starter import bm25_scores, idf

DOCUMENTS = [["ada", "born", "london"], ["london", "london", "is", "a", "city"], []]


def test_idf():
    assert np.isclose(idf("ada", DOCUMENTS), np.log(1 + 2.5 / 1.5))
    assert np.isclose(idf("london", DOCUMENTS), np.log(1 + 1.5 / 2.5))
    assert np.isclose(idf("paris", DOCUMENTS), np.log(1 + 3.5 / 0.5))


def test_a_word_that_only_one_document_has():
    mean_length = 8 / 3
    expected = idf("ada", DOCUMENTS) * 1 / (1 + 1.2 * (1 - 0.75 + 0.75 * 3 / mean_length))
    assert np.allclose(bm25_scores(["ada"], DOCUMENTS, 1.2, 0.75), [expected, 0, 0])


def test_without_length_normalisation():
    expected = idf("london", DOCUMENTS) * np.array([1 / (1 + 1.2), 2 / (2 + 1.2), 0])
    assert np.allclose(bm25_scores(["london"], DOCUMENTS, 1.2, 0.0), expected)


def test_the_words_of_a_query_add_up():
    one, other = bm25_scores(["ada"], DOCUMENTS, 1.2, 0.75), bm25_scores(["london"], DOCUMENTS, 1.2, 0.75)
    assert np.allclose(bm25_scores(["london", "ada", "london"], DOCUMENTS, 1.2, 0.75), one + 2 * other)
