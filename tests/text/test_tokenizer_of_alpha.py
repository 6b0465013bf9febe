"""PanGu-α's weights read what PanGu-α reads."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.texts import tiny_config

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.text.tokenizer import AlphaTokenizer
from pangu_sigma.text.vocabulary import ALPHA_SIZE, UNK


@pytest.fixture(scope="module")
def tokenizer() -> AlphaTokenizer:
    return AlphaTokenizer()


@pytest.fixture(scope="module")
def chinese():
    return domains_of(tiny_config()).named("zh")


@pytest.mark.parametrize(
    "text",
    [
        "１２月３１日，中共中央总书记、国家主席发表１９９８年新年讲话。\n同胞们、朋友们：",
        "这本书  不错，Python 3.11 的 asyncio 讲得很清楚！！ 推荐\n\n  给大家。",
        "😀😀 表情，𡗰字，零宽\u200b度，\x07铃",
        "The cat sat on the mat, über façade.",
        "",
    ],
)
def test_the_ids_are_pangu_alphas_the_unknown_ones_too(tokenizer, chinese, pangu_alpha, text):
    ids = tokenizer.encode(text, chinese)
    assert ids == pangu_alpha.encode(text)
    assert len(tokenizer.rows(ids, chinese)) == len(ids), "each has a row"
    assert ("😀" in text) <= (UNK in ids)


def test_a_row_is_a_piece_and_nothing_else_has_one(tokenizer, chinese):
    np.testing.assert_array_equal(tokenizer.slot_rows, [np.arange(ALPHA_SIZE)])
    assert tokenizer.size > ALPHA_SIZE
    with pytest.raises(ConfigError, match="has no row"):
        tokenizer.rows([ALPHA_SIZE], chinese)
    assert tokenizer.decode(tokenizer.encode("今天天气不错", chinese)) == "今天天气不错"
