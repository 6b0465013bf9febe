"""Messages become one text, the same in our own words and in Jinja."""

from __future__ import annotations

import jinja2
import pytest

from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import parse_config
from pangu_sigma.generate.chat_template import ChatTemplate
from pangu_sigma.sections import ChatConfig

MESSAGES = [("system", "Be {content}."), ("user", 'say "hi"\n'), ("assistant", "hi"), ("user", "今天")]


def template(language: str, **chosen) -> ChatTemplate:
    from dataclasses import replace

    from pangu_sigma.domains import Domain

    domain = replace(Domain(0, "a", "text", "en", 0, 0, 1, 1.0), language=language)
    return ChatTemplate.of(domain, ChatConfig(**chosen))


def test_texts_of_roles_follow_each_other():
    assert template("en").prompt(MESSAGES) == 'Be {content}.\nUser: say "hi"\n\nAssistant: hi\nUser: 今天\nAssistant:'
    assert template("zh").prompt([("user", "今天")]) == "问：今天\n答："
    assert template("python").prompt([("user", "add two numbers")]) == "# add two numbers\n"
    assert template("en").stop == ("\nUser:",)


def test_the_configuration_comes_first():
    mine = template("en", user="<{content}>", stop=["<"])
    assert mine.prompt([("user", "a")]) == "<a>Assistant:"
    assert mine.stop == ("<",)
    assert template("en", stop=[]).stop == ()


@pytest.mark.parametrize("language", ["en", "zh", "mixed", "python", "java"])
def test_jinja_writes_the_same(language):
    mine = template(language)
    messages = [{"role": role, "content": text} for role, text in MESSAGES]
    written = jinja2.Environment().from_string(mine.jinja()).render(messages=messages, add_generation_prompt=True)
    assert written == mine.prompt(MESSAGES)


@pytest.mark.parametrize("text", ["no content", "{content} {content}", "{content} {other}", "{content}" + "x" * 1000])
def test_a_template_has_the_content_once(text):
    from experiments.tiny import tiny_tree

    with pytest.raises(ConfigError, match=r"^chat\.user: "):
        parse_config(tiny_tree("data") | {"chat": {"user": text}})


def test_an_answer_begins_with_the_blanks_that_its_prompt_does_not_have():
    for language in ("en", "zh", "mixed", "python", "java"):
        mine = template(language)
        whole = mine.prompt([("user", "a")]) + mine.answer("b")
        assert (
            whole
            == "".join(
                getattr(mine, role).replace("{content}", text) for role, text in (("user", "a"), ("assistant", "b"))
            )[: len(whole)]
        )
        assert whole.endswith("b")
