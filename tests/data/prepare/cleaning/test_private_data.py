from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.data.prepare.cleaning.private_data import private_data

ID = "11010519491231002X"  # the example of GB 11643
CARD = "6222020903001483077"[:18]


def luhn(number: str) -> str:
    """Number with its check digit, as ISO/IEC 7812 says it: doubled every second digit from the right."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return f"{number}{-total % 10}"


VISA, UNION = luhn("453201511283036"), luhn("622202090300148307")
SPACED = " ".join(VISA[i : i + 4] for i in range(0, 16, 4))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("e-mail", "联系我：zhang.san+news@mail.qq.com。"),
        ("e-mail", "mailto:a@b.cn>"),
        ("e-mail", "<O_Brien-2@sub-domain.university.edu.cn>"),
        ("mobile", "电话13812345678，"),
        ("mobile", "电话：+86 138-1234-5678"),
        ("mobile", "8619912345678 或"),
        ("mobile", "199 1234 5678."),
        ("id_card", f"身份证号{ID}。"),
        ("id_card", f"ID {ID.lower()}"),
        ("ipv4", "服务器在123.125.114.144，"),
        ("ipv4", "http://123.125.114.144:8080/"),
        ("ipv4", "from 202.96.128.86."),
        ("bank_card", f"卡号{UNION}，"),
        ("bank_card", f"Visa {VISA}"),
        ("bank_card", SPACED),
        ("bank_card", SPACED.replace(" ", "-")),
        ("secret", "key = 'AKIAIOSFODNN7ABCDEFG'"),
        ("secret", "-----BEGIN RSA PRIVATE KEY-----\nMIIE"),
        ("secret", "-----BEGIN PRIVATE KEY-----"),
        ("secret", f"ghp_{'aB3' * 12}"),
        ("secret", f"OPENAI_API_KEY=sk-proj-{'aB3_' * 12}"),
        ("secret", f"xoxb-123456789012-{'aB3' * 10}"),
    ],
)
def test_private_data_is_found_alone_and_twice(kind, text):
    assert private_data(text) == {kind: 1}
    assert private_data(f"{text}\n前文{text}后文" if text[0].isascii() is False else f"{text}\n{text}") == {kind: 2}


@pytest.mark.parametrize(
    "text",
    [
        "@decorator def f(self)",
        "a @ b, user@localhost, git@github.com:a/b.git",
        "icon@2x.png, someone@example.com, me@mail.example.org, a@host.local",
        "a@b@c.com.",
        "@media (max-width: 3px)",
        "12812345678",  # no such prefix
        "113812345678, 138123456789, 1381234567",  # another number of digits
        "0.13812345678, 13812345678.5, a13812345678, 13812345678b, id_13812345678, 7-13812345678",
        "138-12345678, 138 1234-5678",
        "1609459200000",  # a time in milliseconds
        "110105194912310021",  # another check digit
        "11010519491331002X, 11010519490231992X",  # no such month, another check digit
        f"1{ID}, {ID}1, a{ID}",
        "127.0.0.1, 10.1.2.200, 192.168.1.1, 172.16.0.254, 0.0.0.0, 255.255.255.0, 224.0.0.251, 192.0.2.200",
        "256.100.100.100, 1.2.3, 114.1.2.3.4, 114.02.3.4, v114.1.2.3",
        "version 3.11.7.4, 2.1.13.2 and 1.2.3.4",
        f"{VISA[:-1]}{(int(VISA[-1]) + 1) % 10}",
        f"1{VISA}, {VISA}123456, x{VISA}",
        "4444444444444444, 0000 0000 0000 0000",
        "1234567890123452",  # Luhn, but no issuer
        "AKIAIOSFODNN7EXAMPLE, AKIA1234, xAKIAIOSFODNN7ABCDEFG",
        "-----BEGIN PUBLIC KEY-----, -----BEGIN CERTIFICATE-----",
        "sk-short, task-force-of-a-very-long-name-that-goes-on-and-on, ghp_short",
        "3.14159265358979323846264338327950288",
        "",
    ],
)
def test_what_only_looks_so_is_not_counted(text):
    assert private_data(text) == Counter()


def test_a_gansu_identity_number_is_no_bank_card():
    """Its province is 62, as UnionPay's cards; one of ten has their check digit, too."""
    weights = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2]
    both = [
        number
        for serial in range(100, 400)
        if (first := f"62010219900307{serial}")
        if luhn(first) == (number := first + "10X98765432"[sum(map(int.__mul__, map(int, first), weights)) % 11])
    ]
    assert both
    assert [private_data(number) for number in both] == [{"id_card": 1}] * len(both)


@given(st.integers(10**15, 10**16 - 1))
def test_check_digits_are_those_of_luhn(number):
    text = f"4{str(number)[1:15]}"
    checked = luhn(text)
    if len(set(checked)) > 2:
        assert private_data(checked) == {"bank_card": 1}
    wrong = f"{text}{(int(checked[-1]) + 5) % 10}"
    assert private_data(wrong)["bank_card"] == 0


@given(st.text("1389@.ab- 中", max_size=80))
def test_any_text_is_counted(text):
    assert all(count > 0 for count in private_data(text).values())


def test_long_runs_take_no_quadratic_time():
    for run in ("a" * 10**5, "1" * 10**5, "a." * 10**5, "1.1." * 10**5, "a@" * 10**5, "a@b." * 10**5, "4111 " * 10**5):
        assert set(private_data(run)) <= {"bank_card", "e-mail"}
