"""The page, as people use it: in a browser, against a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from helpers.served import LENGTH, DrawnDecoder, server_of
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from experiments.tiny import tiny_config
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.serve.logprobs import TokenTexts

PROMPT = "the cat sees"
EXPERTS = 16
SCRIPT = "<script>window.ran=1</script><img src=x onerror='window.ran=1'>"

expect.set_options(timeout=20_000)


class PageDecoder(DrawnDecoder):
    """Draws experts of many numbers. said: ids that it says one after another, whatever the text, if there are any."""

    said: tuple[int, ...] = ()

    def experts(self, domain: Domain, ids: list[int]) -> np.ndarray:
        return domain.index * EXPERTS + np.array([np.array(ids) % EXPERTS, np.array(ids) // 2 % EXPERTS])

    def logits(self, domain: Domain, ids: list[int]) -> np.ndarray:
        drawn_R = super().logits(domain, ids)
        if self.said:
            told = max(n for n in range(len(self.said) + 1) if tuple(ids[len(ids) - n :]) == self.said[:n])
            following = (*self.said, self.tokenizer.eot)[told]
            drawn_R[self.tokenizer.row_of[domain.slot, following]] = 60
        return drawn_R

    def greedy(self, domain: Domain, ids: list[int], number: int) -> list[int]:
        """The ids that follow a text."""
        found = list(ids)
        while len(found) < len(ids) + number:
            found.append(int(self.tokenizer.slot_rows[domain.slot, self.logits(domain, found).argmax()]))
        return found[len(ids) :]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if chromium is None:
        why = "there is no Chromium here; apt-get install chromium-headless-shell"
        assert not os.environ.get("CI"), why
        pytest.skip(why)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def decoder(tiny_data) -> PageDecoder:
    return PageDecoder(tiny_data, ends=False)


@pytest.fixture(scope="module")
def served(decoder) -> Iterator[str]:
    with server_of(decoder) as address:
        yield address


@pytest.fixture
def slowly(decoder) -> Iterator[None]:
    """Each reading of the model takes a while."""
    decoder.seconds = 0.02
    yield
    decoder.seconds = 0.0


@pytest.fixture
def opened(browser, served) -> Iterator[Callable[..., Page]]:
    """Opens the page, at the end of which no script has failed, nothing was blocked, and nobody else was asked."""
    contexts, faults, asked = [], [], set()

    def open_page(address: str = served, **context: Any) -> Page:
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.add("/".join(request.url.split("/")[:3])))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [fault for fault in faults if not fault.startswith("Failed to load resource")] == [], "these are its own"
    assert all(origin.startswith(("http://127.0.0.1:", "data:")) for origin in asked), asked


@pytest.fixture
def page(opened) -> Page:
    return opened()


def domain_named(decoder: PageDecoder, name: str) -> Domain:
    return next(domain for domain in domains_of(decoder.config) if domain.name == name)


def ask(page: Page, domain: str = "en", other: str = "nothing", prompt: str = PROMPT, **sampling: Any) -> None:
    """Fill the form and send it."""
    expect(page.get_by_label("Domain").get_by_role("option", name=domain, exact=True)).to_be_attached()
    page.get_by_label("Domain").select_option(domain)
    page.get_by_label("Compare with").select_option(other)
    page.get_by_label("Prompt").fill(prompt)
    if not page.get_by_label("Temperature").is_visible():
        page.get_by_text("Sampling").click()
    for label, value in ({"Temperature": 0, "Tokens at most": 12} | sampling).items():
        page.get_by_label(label.replace("_", " ")).fill(str(value))
    page.get_by_role("button", name="Generate").click()


def wait(page: Page) -> None:
    """Wait until all answers have ended."""
    expect(page.locator("article .state", has_text=re.compile("waiting|goes on"))).to_have_count(0)
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def rests(decoder: PageDecoder) -> bool:
    """True if the model reads nothing any more."""
    time.sleep(0.2)
    read = decoder.read_ids
    time.sleep(0.2)
    return decoder.read_ids == read


def shown(page: Page, article: int = 0) -> list[tuple[str, list[int]]]:
    """The tokens of an answer as they are seen, and their experts."""
    return (
        page.locator("article")
        .nth(article)
        .evaluate(
            """(answer) => [...answer.querySelectorAll(".token")].map((token) => [
            token.querySelector(".word").textContent,
            [...token.querySelectorAll(".expert")].map((mark) => Number(mark.textContent.replace("c", "")))])"""
        )
    )


def answer_of(served: str, domain: str, prompt: str = PROMPT, **parameters: Any) -> dict[str, Any]:
    """The same from the interface, not streamed."""
    body = {"model": f"sigma-{domain}", "prompt": prompt, "max_tokens": 12, "temperature": 0, "experts": True}
    (choice,) = httpx2.post(f"{served}/v1/completions", json=body | parameters).json()["choices"]
    return choice


def test_the_page_comes_with_its_policy_and_names_no_other_site(served):
    """Its own scripts and styles are allowed by their hashes; that they run is what all other tests show."""
    answer = httpx2.get(served)
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert {rules[name] for name in ("default-src", "frame-ancestors", "trusted-types")} == {"'none'"}
    assert (rules["connect-src"], rules["require-trusted-types-for"]) == ("'self'", "'script'")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert set(re.findall(r"\w+://[^'\" ]*", answer.text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\.style\s*=", answer.text)


def test_what_is_typed_goes_on_token_by_token(page, served, slowly):
    expect(page.get_by_label("Domain").locator("option")).to_have_text(["zh", "en", "code"])
    expect(page.locator("#model")).to_contain_text(f"room for {LENGTH} tokens")
    expect(page.get_by_label("API key")).to_be_hidden()
    page.get_by_label("Domain").select_option("en")
    page.get_by_label("Prompt").press_sequentially(PROMPT)
    page.get_by_text("Sampling").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Tokens at most").fill("16")
    page.evaluate(
        """() => { window.seen = new Set();
        const look = () => { seen.add(document.querySelectorAll(".token").length); requestAnimationFrame(look) };
        look() }"""
    )
    page.get_by_role("button", name="Generate").click()
    wait(page)
    assert len(set(page.evaluate("[...seen]")) - {0, 16}) > 3, "they come one after another"
    expected = answer_of(served, "en", max_tokens=16)
    assert page.locator(".new").text_content() == expected["text"]
    expect(page.locator(".given")).to_have_text(PROMPT)
    expect(page.locator(".state")).to_contain_text("16 tokens in ")
    expect(page.locator(".state")).to_contain_text("it stopped at its limit of tokens")


def test_under_each_token_stand_its_experts(page, decoder, served):
    """The oracle is the decoder's own table, asked for a greedy answer that this test draws by itself."""
    ask(page)
    wait(page)
    domain = domain_named(decoder, "en")
    ids = httpx2.post(f"{served}/tokenize", json={"model": "sigma-en", "prompt": PROMPT}).json()["tokens"]
    new = decoder.greedy(domain, ids, 12)
    expected_NT = decoder.experts(domain, ids + new)[:, len(ids) :]
    assert [experts for _, experts in shown(page)] == expected_NT.T.tolist()
    counts = [dict(sorted(Counter(layer_T).items())) for layer_T in expected_NT.tolist()]
    for layer, count in enumerate(counts):
        expect(page.locator(".load ul").nth(layer).locator("li")).to_have_text([f"{e}× {n}" for e, n in count.items()])
    marks = page.locator(".read").evaluate_all(
        "(all) => all.map((token) => [...token.querySelectorAll('.expert')].map((mark) => Number(mark.textContent)))"
    )
    assert marks == decoder.experts(domain, ids).T.tolist(), "the prompt's tokens have their experts too"
    assert "".join(page.locator(".read .word").all_text_contents()).replace("␣", " ") == PROMPT


def test_an_example_is_pressed_and_a_reload_keeps_it(page):
    page.get_by_role("button", name="def add(").click()
    expect(page.get_by_label("Prompt")).to_have_value("def add(")
    expect(page.get_by_label("Domain")).to_have_value("sigma-code")
    page.get_by_label("Compare with").select_option("en")
    page.reload()
    expect(page.get_by_label("Domain")).to_have_value("sigma-code")
    expect(page.get_by_label("Prompt")).to_have_value("def add(")
    expect(page.get_by_label("Compare with")).to_have_value("sigma-en")


def test_where_two_answers_begin_to_differ_is_said(page, decoder):
    """The texts are the stream's; the words are those that a person counts."""
    said = {"en": "red 😀 dog", "zh": "red 😀 cat", "code": "red 😀 dog"}

    def answer(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        logprobs = {"tokens": ["x"], "token_logprobs": [-1.0], "experts": [[1, 2]], "top_logprobs": [{"x": -1.0}]}
        text = said[body["model"].removeprefix("sigma-")]
        chunk = {"choices": [{"text": text, "finish_reason": "length", "logprobs": logprobs}]}
        route.fulfill(body=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n")

    page.route("**/v1/completions", answer)
    ask(page, "en", "zh")
    expect(page.locator("#difference")).to_have_text(
        "Both answers begin with the same 6 characters, underlined, and differ from there on."
    )
    assert page.locator(".same").all_text_contents() == ["red 😀 "] * 2
    assert page.locator(".new").all_text_contents() == ["red 😀 dog", "red 😀 cat"]
    ask(page, "en", "code")
    expect(page.locator("#difference")).to_have_text("Both answers have the same text.")
    said["code"] = "x"
    ask(page, "en", "code")
    expect(page.locator("#difference")).to_have_text("The answers differ from the first character on.")
    ask(page)
    expect(page.locator("#difference")).to_be_hidden()


class SegmentedDecoder(PageDecoder):
    """Two RRE layers of an own and a common segment."""

    def __init__(self, prepared: Path):
        super().__init__(prepared, ends=False)
        model = {"seq_length": LENGTH, "segments": ["own", "common"], "common_experts": 3}
        self.config = tiny_config(prepared, model=model)

    def experts(self, domain: Domain, ids: list[int]) -> np.ndarray:
        own_NT, common_T = super().experts(domain, ids), np.array(ids) % 3
        return np.stack([own_NT[0], common_T, own_NT[1], 2 - common_T])


def test_common_experts_look_otherwise_than_own_ones(opened, tiny_data):
    decoder = SegmentedDecoder(tiny_data)
    with server_of(decoder) as address:
        page = opened(address)
        ask(page, other="zh")
        wait(page)
        of_tokens = [experts for _, experts in shown(page)]
        assert {len(experts) for experts in of_tokens} == {4}
        marks = page.locator(".token").first.locator(".expert")
        expect(marks).to_have_class([re.compile("^expert( first)?$"), re.compile("^expert common$")] * 2)
        expect(marks).to_have_text([re.compile(kind) for kind in (r"^\d+$", r"^c\d$") * 2])
        expect(page.locator("article").first.locator(".load dt")).to_have_text(
            [f"RRE layer {n}, segment {s}" for n in (1, 2) for s in ("1 (own)", "2 (common)")]
        )
        page.locator(".token").first.hover()
        expect(page.locator(".detail .experts li").nth(3)).to_have_text(
            f"RRE layer 2, segment 2 (common): expert c{of_tokens[0][3]}"
        )
        expect(page.locator(".token").first).to_have_attribute(
            "aria-label", re.compile(r"experts \d+, common \d, \d+, common")
        )


def test_a_token_tells_its_probability_and_alternatives(opened, decoder, served):
    page = opened(has_touch=True)
    ask(page)
    wait(page)
    domain, texts = domain_named(decoder, "en"), TokenTexts(decoder.tokenizer.vocabulary)
    ids = httpx2.post(f"{served}/tokenize", json={"model": "sigma-en", "prompt": PROMPT}).json()["tokens"]
    new = decoder.greedy(domain, ids, 12)
    for at, way in ((7, "hover"), (3, "tap"), (5, "focus")):
        logits_R = decoder.logits(domain, ids + new[:at]).astype(np.float64)
        best = np.argsort(-logits_R)[:5]
        expected = np.exp(logits_R[best] - np.logaddexp.reduce(logits_R))
        getattr(page.locator(".token").nth(at), way)()
        experts = decoder.experts(domain, [new[at]])[:, 0]
        expect(page.locator(".detail .experts li")).to_have_text(
            [f"RRE layer {n + 1}: expert {e}" for n, e in enumerate(experts)]
        )
        lines = page.get_by_label("A token of the answer in en").locator("ol li")
        expect(lines).to_have_count(5)
        shares = lines.evaluate_all("(lines) => lines.map((line) => line.children[1].textContent)")
        assert [float(share.strip("%")) / 100 for share in shares] == pytest.approx(expected, rel=0.051), "two digits"
        first = texts.display_text(int(decoder.tokenizer.slot_rows[domain.slot, best[0]])).removeprefix("bytes:")
        assert lines.first.locator(".word").text_content().strip("␣ ") == first.strip()
        expect(lines.first).to_have_class("taken")
        expect(page.locator(".token").nth(at)).to_have_attribute("aria-selected", "true")


def test_stop_stops_the_model(page, decoder, slowly):
    for by in ("button", "Escape"):
        ask(page, Tokens_at_most=80)
        expect(page.locator(".token")).not_to_have_count(0)
        if by == "button":
            page.get_by_role("button", name="Stop").click()
            expect(page.get_by_role("button", name="Generate")).to_be_focused()
        else:
            page.keyboard.press(by)
        wait(page)
        expect(page.locator(".state")).to_contain_text(": stopped")
        assert 0 < len(shown(page)) < 80
        expect(page.get_by_role("alert").locator("visible=true")).to_have_count(0)
        assert rests(decoder), "nobody waits"


def test_a_new_request_replaces_one_that_runs(page, decoder, served, slowly):
    ask(page, Tokens_at_most=80)
    expect(page.locator(".token")).not_to_have_count(0)
    ask(page, prompt="a red house")
    wait(page)
    assert rests(decoder), "the first one is not computed any more"
    expect(page.locator("article")).to_have_count(1)
    assert page.locator(".new").text_content() == answer_of(served, "en", "a red house")["text"]


def test_what_the_server_refuses_is_said_with_its_reason(page):
    ask(page, Temperature=3)
    reason = "temperature: it must be less than or equal to 2"
    expect(page.locator("article").get_by_role("alert")).to_contain_text(reason)
    wait(page)
    expect(page.locator(".state")).to_have_text("0 tokens, then it failed")
    ask(page)
    wait(page)
    expect(page.locator("article").get_by_role("alert")).to_be_hidden()


WENT_WRONG: list[tuple[dict[str, Any] | None, str]] = [
    (
        {"status": 429, "json": {"error": {"message": "256 wait"}}, "headers": {"Retry-After": "7"}},
        "256 wait (try again in 7 s)",
    ),
    ({"status": 502, "body": "<h1>Bad gateway</h1>"}, "the server answers 502"),
    ({"body": 'data: {"error": {"message": "the model failed"}}\n\ndata: [DONE]\n\n'}, "the model failed"),
    ({"body": ""}, "the connection ended before the answer did"),
    (None, "the server does not answer"),
]
"""The server's answer, and what the page says."""


def test_what_goes_wrong_on_the_way_is_said(page):
    answer: dict[str, Any] | None

    def handle(route: Route) -> None:
        route.abort() if answer is None else route.fulfill(**answer)

    page.route("**/v1/completions", handle)
    for answer, reason in WENT_WRONG:  # noqa: B007 (`handle` uses the answer)
        ask(page)
        expect(page.locator("article").get_by_role("alert")).to_contain_text(reason)
        wait(page)


def test_stop_strings_and_warnings(page, served):
    text = answer_of(served, "en")["text"]
    page.get_by_text("Sampling").click()
    page.get_by_label("Stop before any of these").fill(f"\x00\x00\n{text[4:6]}\n")
    ask(page)
    wait(page)
    assert page.locator(".new").text_content() == text[: text.index(text[4:6])]
    expect(page.locator(".state")).to_contain_text("the text ended")
    chunk = '{"choices": [], "warnings": ["left out: <b>x</b>"]}'
    page.route("**/v1/completions", lambda route: route.fulfill(body=f"data: {chunk}\n\ndata: [DONE]\n\n"))
    ask(page)
    expect(page.locator(".warnings li")).to_have_text(["left out: <b>x</b>"])


def test_two_domains_stand_side_by_side(page, served, slowly):
    ask(page, "en", "zh", prompt="今天 the cat")
    wait(page)
    expect(page.locator("article h2")).to_have_text(["en", "zh"])
    for article, domain in enumerate(("en", "zh")):
        expected = answer_of(served, domain, "今天 the cat")
        assert page.locator(".new").nth(article).text_content() == expected["text"]
        assert [experts for _, experts in shown(page, article)] == expected["logprobs"]["experts"]
        expect(page.locator(".text").nth(article)).to_have_attribute("lang", domain)
    one, other = ({expert for _, experts in shown(page, article) for expert in experts} for article in (0, 1))
    assert one and other and not one & other, "the experts of two domains are never the same"


def test_markup_is_only_text_whoever_says_it(page, decoder):
    decoder.said = tuple(decoder.tokenizer.encode(SCRIPT, domain_named(decoder, "en")))
    try:
        ask(page, prompt="the", Tokens_at_most=len(decoder.said) + 1)
        wait(page)
    finally:
        decoder.said = ()
    assert page.locator(".new").text_content() == SCRIPT
    assert "<" in "".join(word for word, _ in shown(page))
    page.locator(".token").first.focus()
    expect(page.locator(".detail h3")).to_contain_text("<")
    page.route("**/v1/completions", lambda route: route.fulfill(status=400, json={"error": {"message": SCRIPT}}))
    ask(page, prompt=SCRIPT)
    assert page.locator(".given").text_content() == SCRIPT
    expect(page.locator("article").get_by_role("alert")).to_have_text(SCRIPT)
    assert page.locator("main script, main img").count() == 0
    assert page.evaluate("window.ran") is None


def test_a_key_is_asked_for_where_there_is_one(opened, decoder):
    with server_of(decoder, key="secret") as address:
        page = opened(address)
        expect(page.get_by_label("API key")).to_be_focused()
        expect(page.get_by_role("alert").locator("visible=true")).to_contain_text("the key is missing or wrong")
        for wrong, reason in (("other", "the key is missing or wrong"), ("schlüssel", "of ASCII only")):
            page.get_by_label("API key").fill(wrong)
            page.keyboard.press("Enter")
            expect(page.get_by_role("alert").locator("visible=true")).to_contain_text(reason)
        page.get_by_label("API key").fill("secret")
        page.keyboard.press("Tab")
        expect(page.get_by_role("alert").locator("visible=true")).to_have_count(0)
        expect(page.get_by_label("Domain").locator("option")).to_have_text(["zh", "en", "code"])
        ask(page)
        wait(page)
        assert shown(page)
        page.get_by_label("API key").fill("other")
        ask(page)
        expect(page.locator("article").get_by_role("alert")).to_contain_text("the key is missing or wrong")
        page.close()


def test_the_keyboard_is_enough(page, served):
    expect(page.get_by_label("Domain").locator("option")).to_have_count(3)

    def tab_to(label: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            found = page.evaluate(
                """() => { const e = document.activeElement;
                return [e.ariaLabel ?? e.labels?.[0]?.textContent ?? e.textContent, getComputedStyle(e).outlineStyle] }"""
            )
            assert found[1] == "solid", f"where one is can be seen: {found[0]}"
            if found[0].startswith(label):
                return
        raise AssertionError(f"{label} is not reached")

    tab_to("Domain")
    page.keyboard.type("en")
    tab_to("Prompt")
    page.keyboard.type(PROMPT)
    tab_to("Sampling")
    page.keyboard.press("Enter")
    for label, value in (("Tokens at most", "12"), ("Temperature", "0")):
        tab_to(label)
        page.keyboard.press("Control+a")
        page.keyboard.type(value)
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("option").and_(page.locator(".token"))).to_have_count(12)
    wait(page)
    expected = answer_of(served, "en", logprobs=5)["logprobs"]
    tab_to(page.locator(".token").first.get_attribute("aria-label"))
    title = page.get_by_label("A token of the answer in en").get_by_role("heading")
    for key, number in (("Right", 2), ("Right", 3), ("Left", 2), ("End", 12), ("Right", 12), ("Home", 1), ("Left", 1)):
        page.keyboard.press(f"Arrow{key}" if key in ("Right", "Left") else key)
        expect(page.locator(".token").nth(number - 1)).to_be_focused()
        expect(title).to_contain_text(f"Token {number}: ")
        spoken = page.locator(".token:focus").get_attribute("aria-label")
        assert f"experts {', '.join(map(str, expected['experts'][number - 1]))}; instead: " in spoken
    tab_to("A token of the answer in en")
    tab_to("its models")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier(opened, decoder, scheme):
    page, axe = opened(color_scheme=scheme, reduced_motion="reduce"), Axe()

    def check(state: str) -> None:
        found = axe.run(page)
        assert found.violations_count == 0, f"{state}: {found.generate_report()}"

    page.get_by_text("Sampling").click()
    check("the form")
    ask(page, "en", "zh", Tokens_at_most=40)
    wait(page)
    assert page.locator(".token").first.evaluate("(token) => getComputedStyle(token).animationName") == "none"
    page.locator(".token").nth(3).focus()
    check("two answers")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 600) == (scheme == "light")
    page.route("**/v1/completions", lambda route: route.abort())
    ask(page)
    expect(page.locator("article").get_by_role("alert")).to_be_visible()
    check("an error")


def test_a_phone_is_wide_enough(opened):
    page = opened(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True, device_scale_factor=2)
    long = ["w" * 80, " " * 80, "今" * 80]
    logprobs = {"tokens": long, "token_logprobs": [-1.0] * 3, "experts": [list(range(10, 30))] * 3}
    logprobs["top_logprobs"] = [dict.fromkeys(long, -1.0)] * 3
    chunk = {"choices": [{"text": "".join(long), "finish_reason": "length", "logprobs": logprobs}]}
    page.route("**/v1/completions", lambda route: route.fulfill(body=f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"))
    ask(page, "en", "zh", prompt="w" * 70)
    wait(page)
    page.locator(".token").nth(1).tap()
    expect(page.locator(".detail").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.route("**/v1/completions", lambda route: route.fulfill(status=400, json={"error": {"message": "w" * 300}}))
    ask(page)
    expect(page.locator("article").get_by_role("alert")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
