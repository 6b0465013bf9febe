"""Strings of many kinds that a tokenizer may lose, drawn with a seed, and what may come back instead of them."""

from __future__ import annotations

import random
import re
import unicodedata

HAN = "的一是了我不人在他有这中大来上国和说们为子那要你会家可下过天去能对小多然于心学么之都好看起发当没成只如事把还用第样道想作种开"
LATIN = ["The", "quick", "brown", "fox,", "v3.11", "(x_y)", "costs", "$5", "&", "7%;", "it's", '"fine"!', "Ok?"]
KINDS = {
    "chinese": [*HAN, "，", "。", "中国人民", "北京大学", "的希望"],
    "no row": ["训练", "股", "气", "龟", "鬱", "麤", "训", "练", "中国", "模型", "股票"],
    "mixed": [*HAN, *LATIN, " ", "用 Python 写", "AT&T", "C++"],
    "full-width": ["１９９８", "ＡＢｃ", "：", "！", "～", "￥", "（", "）", "国", "年"],
    "compatibility": ["①", "㎏", "ﬁ", "Ⅳ", "²", "½", "㊥", "ｶﾞ", "﹏", "豈", "ﷺ", "㋿", "国", "㍿"],
    "emoji": ["🙂", "👩‍👩‍👧", "🇨🇳", "❤️", "👍🏽", "国", "好", " "],
    "rare han": ["𠀀", "𪚥", "龘", "㐀", "䶮", "鿿", "𰻝", "〇", "⺀", "国"],
    "kana": ["こんにちは", "カタカナ", "ー", "東京", "です", "国"],
    "other scripts": ["αβγ", "Привет", "한국어", "ไทย", "हिन्दी", "é", "국", "国"],
    "right to left": ["שלום", "العربية", "\u200f", "\u202eabc\u202c", "国", " "],
    "tabs": ["\t", "\t\t", "    ", "if x:", "\n", "返回", "#"],
    "unseen": ["\u200b", "\u200d", "\ufeff", "\xad", "\x01", "\x7f", "\x85", "\x9f", "\x1b[0m", "\0", "国", "a"],
    "wide blanks": ["\u3000", "\u3000\u3000", "\xa0", "\u2003", "\u202f", "\u1680", "国", "。", "\n"],
    "line ends": ["\r\n", "\r", "\n", "\u2028", "\u2029", "\f", "\v", "国", "a", " "],
    "marks": ["▁", "▂", "▃", "▄", " ", "\n", "国", "a", "▁▂▃", "<unk>", "<eot>", "<0x41>", "<CN>", "⁇"],
    "combining": ["e\u0301", "\u0301", "´", "¨", "ᄀ", "ᅡ", "か\u3099", "゛", "¯", "A\u030a", "国", " "],
    "blanks": [" ", "  ", "   ", "国", "a", "\n", "\n\n"],
    "no characters": ["\ufffd", "\uffff", "\ufdd0", "\ue000", "\U0010ffff", "\U000e0001", "\u0378", "国"],
}


def strings(kind: str, count: int) -> list[str]:
    """`count` strings of a kind, each of up to 24 of its pieces, some with pieces of other kinds between them."""
    rng = random.Random(kind)
    every = [piece for pieces in KINDS.values() for piece in pieces]
    return [
        "".join(rng.choice(KINDS[kind] if i % 3 or rng.random() < 0.8 else every) for _ in range(rng.randint(1, 24)))
        for i in range(count)
    ]


def itself_or_nfkc(text: str) -> re.Pattern[str]:
    """What matches a string in which every character of `text` is itself or its own NFKC form; Python says what that is."""
    return re.compile("".join(f"(?:{re.escape(c)}|{re.escape(unicodedata.normalize('NFKC', c))})" for c in text))
