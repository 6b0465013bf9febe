"""Text that is missing or too short is refused by name."""

from __future__ import annotations

import pytest
from helpers.numbered import LENGTH, config_of, open_batches
from helpers.prepared import seal

from pangu_sigma.data.token_files import write_tokens
from pangu_sigma.errors import DataError


def test_a_domain_with_less_text_than_a_sample_is_refused_by_name(folder, tokenizer, tmp_path):
    for name, tokens in (("a", LENGTH + 1), ("b", LENGTH), ("c", 100)):
        (tmp_path / name).mkdir()
        write_tokens(tmp_path / name / "train", [list(range(10, 10 + tokens))])
    with pytest.raises(DataError, match=r"domain b: the train split has 8 tokens.*9.*seq_length"):
        open_batches(config_of(), seal(tmp_path), tokenizer)
