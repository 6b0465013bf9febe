from __future__ import annotations

import json

from pangu_sigma.data.packaged.translations import json_pairs, page_pairs


def test_texts_under_the_same_keys_are_pairs():
    chinese = {
        "a": {"title": "标题 ", "only": "只有中文"},
        "title": "另一个",
        "key": "标识",
        "state": "开",
        "same": "OK",
    }
    english = {
        "a": {"title": "Title"},
        "title": "Another",
        "key": "some_key",
        "state": "1",
        "same": "OK",
        "more": "More",
    }
    pairs = json_pairs(json.dumps(chinese).encode(), json.dumps(english).encode())
    assert list(pairs) == [("标题", "Title"), ("另一个", "Another")]


def test_pages_are_cut_where_both_languages_have_as_many_parts():
    chinese = "---\nsearch: false\n---\n# 标题\n\n第一段。\r\n\r\n```\nx = 1\n```\n\n## 更多\n\n第二段。\n\n第三段。\n"
    english = "# Title\n\nThe first.\n\n```\nx = 1\n```\n\n## More\n\nThe second, and the third.\n"
    assert list(page_pairs(chinese.encode(), english.encode())) == [
        ("# 标题", "# Title"),
        ("第一段。", "The first."),
        ("## 更多\n\n第二段。\n\n第三段。", "## More\n\nThe second, and the third."),
    ]
