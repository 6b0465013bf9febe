"""Private data in text, counted by kind and left as it is: what to do about it is for people to decide.

Patterns prefer precision: numbers must have the form, the valid ranges and, where there is one, the check digit of their kind, and
stand alone. Reserved names and addresses, and keys of manuals, are nobody's.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator

_EMAIL = re.compile(
    r"(?<![\w.+%@-])[A-Za-z0-9](?:[\w.+%-]{0,62}[\w+%-])?@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
    r"[A-Za-z]{2,24})(?![\w@-])",
    re.ASCII,
)
_NO_DOMAINS = re.compile(
    r"(?:^|\.)example(?:\.|$)|\.(?:example|invalid|test|local|png|jpe?g|gif|svg|webp|css|js|py|html?)$", re.I
)
"""Reserved names (RFC 2606), and names of files such as `icon@2x.png`."""
_MOBILE = re.compile(
    r"(?<![\w.+-])(?:\+?86[ -]?)?1(?:3\d|4[5-9]|5[0-35-9]|6[2567]|7[0-8]|8\d|9[0-35-9])([ -]?)\d{4}\1\d{4}(?![\w-]|\.\d)",
    re.ASCII,
)
_ID_CARD = re.compile(
    r"(?<![\w.-])[1-8]\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\w-]|\.\d)", re.ASCII
)
_PROVINCES = {
    *range(11, 16),
    *range(21, 24),
    *range(31, 38),
    *range(41, 47),
    *range(50, 55),
    *range(61, 66),
    71,
    81,
    82,
}
_IPV4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\w)", re.ASCII)
_CARD = re.compile(
    r"(?<![\w.-])(?:(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|62\d\d)([ -]?)\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|62\d{14,17})(?![\w-]|\.\d)",
    re.ASCII,
)
_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY-----"
    r"|(?<![A-Za-z0-9])(?:(?:AKIA|ASIA)[A-Z2-7]{16}|gh[pousr]_[A-Za-z0-9]{36}|xox[abprs]-\d{9,13}-[A-Za-z0-9-]{20,80}"
    r"|sk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,200}|AIza[A-Za-z0-9_-]{35}|LTAI[A-Za-z0-9]{20})(?![A-Za-z0-9])"
)
"""Private keys, and keys of AWS, GitHub, Slack, OpenAI and Anthropic, Google and Alibaba Cloud."""


def private_data(text: str) -> Counter[str]:
    """Count private data in text by kind: `e-mail`, `mobile` (China), `id_card` (China), `ipv4` (global addresses), `bank_card`,
    `secret`. Bank cards are those of UnionPay, Visa and MasterCard."""
    counts: Counter[str] = Counter()
    for kind, (pattern, hint, real) in _KINDS.items():
        if hint is None or hint in text:
            counts[kind] = sum(map(real, _found(pattern, text)))
    return +counts


def _found(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    return (match[0] for match in pattern.finditer(text))


def _is_address(text: str) -> bool:
    user, _, domain = text.rpartition("@")
    return user != "git" and not _NO_DOMAINS.search(domain)


def _is_id_card(text: str) -> bool:
    """Return True for a known province and the check digit of GB 11643 (ISO 7064 MOD 11-2)."""
    total = sum(int(digit) * pow(2, 17 - index, 11) for index, digit in enumerate(text[:17]))
    return int(text[:2]) in _PROVINCES and "10X98765432"[total % 11] == text[17].upper()


def _is_global(text: str) -> bool:
    """Return True for an address of the internet with a number above 99, which 98 % have, and versions of programs have not."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast and max(address.packed) > 99


def _is_card(text: str) -> bool:
    """Return True for the check digit of ISO/IEC 7812 (Luhn), unless the number is that of an identity card."""
    digits = [int(each) for each in text if each.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    varied = len(set(digits)) > 2
    return varied and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and not (len(text) == 18 and _is_id_card(text))


def _is_no_example(text: str) -> bool:
    return "EXAMPLE" not in text


_KINDS: dict[str, tuple[re.Pattern[str], str | None, Callable[[str], bool]]] = {
    "e-mail": (_EMAIL, "@", _is_address),
    "mobile": (_MOBILE, None, bool),
    "id_card": (_ID_CARD, None, _is_id_card),
    "ipv4": (_IPV4, ".", _is_global),
    "bank_card": (_CARD, None, _is_card),
    "secret": (_SECRET, None, _is_no_example),
}
"""Pattern of each kind, a part of every match that is quickly found, and what a match must be besides."""
