from __future__ import annotations

from pangu_sigma.evaluate.run import format_losses


def test_the_table_has_a_line_for_each_domain():
    text = format_losses({"zh": {"loss": 6.2694, "unigram": 7.2371}, "en": {"loss": 5.4, "unigram": 6.0}})
    assert text.splitlines() == [
        "domain           loss  unigram   held-out, nats per token",
        "zh              6.269    7.237",
        "en              5.400    6.000",
    ]
