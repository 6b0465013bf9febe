"""Chat in the terminal. With input from a file or pipe, each line is a message and its answer goes to standard output."""

from __future__ import annotations

import secrets
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import override, validated
from pangu_sigma.domains import domains_of
from pangu_sigma.errors import UserError, argument
from pangu_sigma.generate.chat_template import ChatTemplate, Role
from pangu_sigma.generate.decoder import Decoder
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.generate.text import text_in_parts
from pangu_sigma.serve.prompts import PromptTokenizer
from pangu_sigma.serve.refusals import ApiError

HELP = """\
/domain NAME       let this domain answer, and forget what was said; without NAME: who there is
/system TEXT       say how answers are to be, and forget what was said; without TEXT: nothing of the kind
/temperature T     0 is greedy
/reset             forget what was said
/retry             another answer to the last message
/help              this
/quit              the end, as Ctrl-D; Ctrl-C ends an answer
Anything else is said to the model. Write // for a message that begins with /."""


@dataclass
class ChatSettings:
    """Options of a chat in the terminal. None stands for the first domain, as many new tokens as fit, or a random seed."""

    domain: str | None = None
    temperature: float = 0.7
    max_new_tokens: int | None = None
    seed: int | None = None


class Chat:
    """Chat in the terminal. output: stream of the answers. Notes to the user go to standard error."""

    def __init__(self, decoder: Decoder, settings: ChatSettings, output: TextIO):
        """Begin an empty chat. Raises ConfigError for an unknown domain, and for max_new_tokens that leave no room for a prompt."""
        self.engine, self.config, self.output = Engine(decoder), decoder.config, output
        self.prompts = PromptTokenizer(decoder.tokenizer, decoder.config)
        limit, self.max_new_tokens = self.prompts.length - 1, settings.max_new_tokens
        if self.max_new_tokens is not None and not 1 <= self.max_new_tokens <= limit:
            problem = f"{argument('--max-new-tokens')}={self.max_new_tokens} is not allowed"
            raise ConfigError(
                f"{problem}: 1 to {limit}, as model.seq_length={limit + 1}; leave it out for as many as fit"
            )
        self.domains = domains_of(self.config)
        self.domain = self.domains[0] if settings.domain is None else self.domains.named(settings.domain)
        self.sampling, self.system = Sampling(temperature=settings.temperature), ""
        self.seed = secrets.randbits(32) if settings.seed is None else settings.seed
        self.messages: list[tuple[Role, str]] = []

    def say(self, text: str) -> None:
        """Print a note to the user. Notes written for HTTP clients name max_tokens; here that is an option of the command."""
        sys.stderr.write(f"{text.replace('max_tokens', argument('--max-new-tokens'))}\n")

    def take(self, line: str) -> bool:
        """Answer a message, or execute a command, which begins with one /. Returns False if the command ends the chat."""
        try:
            if line.startswith("/") and not line.startswith("//"):
                command, _, value = line.partition(" ")
                return self.command(command, value.strip())
            self.answer(line.removeprefix("/"))
        except (ApiError, UserError) as error:
            self.say(error.detail if isinstance(error, ApiError) else str(error))
        return True

    def answer(self, text: str) -> None:
        """Send a message to the model, and write its answer as it is generated. Raises UserError or ApiError."""
        template = ChatTemplate.of(self.domain, self.config.chat)
        system: list[tuple[Role, str]] = [("system", self.system)] if self.system else []
        messages: list[tuple[Role, str]] = [*system, *self.messages, ("user", text)]
        ids, warnings = self.prompts.chat_prompt(messages, self.domain, template, self.max_new_tokens)
        for warning in warnings:
            self.say(warning)
        max_new_tokens = self.max_new_tokens or self.prompts.length - len(ids)
        request = Request(self.domain, tuple(ids), max_new_tokens, self.sampling, self.seed, template.stop)
        self.seed += 1  # `/retry` gives another answer
        reply = self._stream(request, template)
        self.messages += [("user", text), ("assistant", reply)]

    def command(self, name: str, value: str) -> bool:
        """Execute a command with a value, "" for none. Returns False if the command ends the chat. Raises UserError or ApiError."""
        match name:
            case "/quit" | "/exit":
                return False
            case "/help":
                self.say(HELP)
            case "/reset":
                self.messages.clear()
            case "/system":
                self.system, self.messages = value, []
            case "/temperature":
                self.sampling = validated(Sampling, override({}, [f"temperature={value}"]))
            case "/domain" if value:
                self.domain, self.messages = self.domains.named(value), []
            case "/domain":
                self.say(", ".join(f"*{d.name}" if d is self.domain else d.name for d in self.domains))
            case "/retry" if self.messages:
                (_, user_text), _ = self.messages[-2:]
                del self.messages[-2:]
                self.answer(user_text)
            case "/retry":
                self.say("nothing was said yet")
            case _:
                self.say(f"there is no {name}; /help says what there is")
        return True

    def _stream(self, request: Request, template: ChatTemplate) -> str:
        """Generate an answer, write its text as it grows, and return the text. Ctrl-C ends the answer."""
        text, shown_length = "", 0
        try:
            for part in text_in_parts(self.engine, request):
                text += part
                new_text = template.without_blanks(text)[shown_length:]
                self.output.write(new_text)
                self.output.flush()
                shown_length += len(new_text)
        except KeyboardInterrupt:
            self.say("(stopped)")
        self.output.write("\n")
        return text.strip()


def run_chat(decoder: Decoder, settings: ChatSettings, lines: TextIO, output: TextIO) -> int:
    """Run a chat until the input `lines` ends, and return the exit status. Raises ConfigError for settings that cannot be."""
    chat = Chat(decoder, settings, output)
    if not lines.isatty():
        for line in map(str.strip, lines):
            if line and not chat.take(line):
                break
        return 0
    with suppress(ImportError):  # line editing and history of `input`, where Python has readline
        import readline  # noqa: F401
    chat.say(f"{decoder.config.name}, domain {chat.domain.name}; /help says what there is")
    with suppress(EOFError):  # Ctrl-D
        goes_on = True
        while goes_on:
            with suppress(KeyboardInterrupt):  # Ctrl-C drops the line
                line = input(f"{chat.domain.name}> ").strip()
                goes_on = not line or chat.take(line)
    return 0
