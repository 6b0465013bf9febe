"""Text that comes in parts is the text of the whole, cut before its first stop string."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pangu_sigma.generate.characters import IncrementalText, decode_in_parts

SURFACES = st.lists(st.binary(max_size=3) | st.sampled_from([*"ab今é🙂"]).map(str.encode), max_size=12)


@given(SURFACES)
def test_parts_joined_are_the_text_of_all_bytes(surfaces):
    """Broken UTF-8 too: each token's characters, and U+FFFD for what is none, as decoding everything at once has it."""
    parts = decode_in_parts(surfaces)
    assert len(parts) == len(surfaces)
    assert "".join(parts) == b"".join(surfaces).decode("utf-8", errors="replace")


@given(st.text("ab", max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_it_ends_before_the_stop_string_that_is_complete_first_however_tokens_begin(text, stop, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    growing = IncrementalText(stop)
    told = ""
    for first, last in zip([0, *cuts], [*cuts, len(text)], strict=True):
        told += growing.add(text[first:last].encode())
        if growing.stopped:
            break
        rest = text[len(told) : last]
        assert text.startswith(told)
        assert not rest or any(s.startswith(rest) for s in stop), "what is held back may become a stop string"
    told += growing.end()
    by_characters = IncrementalText(stop)
    expected = "".join(by_characters.add(character.encode()) for character in text) + by_characters.end()
    assert (told, growing.stopped) == (expected, by_characters.stopped)
    assert growing.stopped == any(s in text for s in stop)
    if growing.stopped:
        end = min(text.find(s) + len(s) for s in stop if s in text)
        assert told == text[: end - max(len(s) for s in stop if text[:end].endswith(s))]
    else:
        assert told == text


def test_a_character_appears_when_its_bytes_are_there():
    broken = "\N{REPLACEMENT CHARACTER}"
    assert decode_in_parts([b"\xe4", b"\xbb", b"\x8a!", b"\xe4", b"a"]) == ["", "", "今!", "", f"{broken}a"]
    assert decode_in_parts([b"a\xe4"]) == [f"a{broken}"]
    assert decode_in_parts([]) == []


def test_nothing_comes_after_a_stop_string():
    growing = IncrementalText(["b"])
    assert (growing.add(b"abc"), growing.stopped, growing.add(b"d"), growing.end()) == ("a", True, "", "")
