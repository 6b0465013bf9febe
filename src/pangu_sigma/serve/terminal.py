"""Chat in the terminal. With input from a file or pipe, each line is a message and its answer goes to standard output."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TextIO

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import Domain, domains_of
from pangu_sigma.errors import UserError, argument
from pangu_sigma.generate.chat_template import ChatTemplate, Role
from pangu_sigma.generate.decoder import Decoder
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Request
from pangu_sigma.generate.sampling import Sampling
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
"""Help text of the commands of a chat in the terminal."""


@dataclass
class ChatSettings:
    """Options of a chat in the terminal. None stands for the first domain, as many new tokens as fit, or a random seed."""

    domain: str | None = None
    temperature: float = 0.7
    max_new_tokens: int | None = None
    seed: int | None = None


@dataclass
class Chat:
    """Chat session in the terminal. messages: history of the chat. write: prints answers. say: prints notes to the user."""

    engine: Engine
    settings: ChatSettings
    write: Callable[[str], None]
    say: Callable[[str], None]
    messages: list[tuple[Role, str]] = field(default_factory=list)

    def __post_init__(self):
        decoder = self.engine.decoder
        self.config, self.prompts = decoder.config, PromptTokenizer(decoder.tokenizer, decoder.config)
        most, tokens = self.prompts.length - 1, self.settings.max_new_tokens
        if tokens is not None and not 1 <= tokens <= most:
            named = f"{argument('--max-new-tokens')}={tokens} is not allowed"
            raise ConfigError(f"{named}: 1 to {most}, as model.seq_length={most + 1}; leave it out for as many as fit")
        self.domains = domains_of(self.config)
        name = self.settings.domain
        self.domain: Domain = self.domains[0] if name is None else self.domains.named(name)
        self.sampling = Sampling(self.settings.temperature)
        self.system = ""
        self._seed = secrets.randbits(32) if self.settings.seed is None else self.settings.seed

    def answer(self, text: str) -> None:
        """Send a message to the model, and write its answer as it is generated. Raises UserError or ApiError."""
        template = ChatTemplate.of(self.domain, self.config.chat)
        system: list[tuple[Role, str]] = [("system", self.system)] if self.system else []
        messages: list[tuple[Role, str]] = [*system, *self.messages, ("user", text)]
        ids, warnings = self.prompts.chat_prompt(messages, self.domain, template, self.settings.max_new_tokens)
        for warning in warnings:
            self.say(warning)
        room = self.prompts.length - len(ids)
        request = Request(
            self.domain, tuple(ids), self.settings.max_new_tokens or room, self.sampling, self._seed, template.stop
        )
        self._seed += 1
        reply = self._stream(request, template)
        self.messages += [("user", text), ("assistant", reply)]

    def command(self, line: str) -> bool:
        """Execute a command, a line that begins with /. Returns False if it ends the chat. Raises UserError or ApiError."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        match word:
            case "/quit" | "/exit":
                return False
            case "/help":
                self.say(HELP)
            case "/reset":
                self.messages.clear()
            case "/system":
                self.system, self.messages = rest, []
            case "/temperature":
                self._temperature(rest)
            case "/domain":
                self._domain(rest)
            case "/retry":
                self._retry()
            case _:
                self.say(f"there is no {word}; /help says what there is")
        return True

    def _domain(self, name: str) -> None:
        if name:
            self.domain = self.domains.named(name)
            self.messages.clear()
        else:
            self.say(", ".join(f"*{d.name}" if d is self.domain else d.name for d in self.domains))

    def _temperature(self, text: str) -> None:
        try:
            temperature = float(text)
        except ValueError:
            self.say(f"/temperature {text}: a number is wanted, 0 or more")
        else:
            self.sampling = Sampling(temperature)

    def _retry(self) -> None:
        if len(self.messages) < 2:
            self.say("nothing was said yet")
            return
        (_, text), _ = self.messages[-2:]
        del self.messages[-2:]
        self.answer(text)

    def _stream(self, request: Request, template: ChatTemplate) -> str:
        shown = 0
        answer = self.engine.submit(request)
        try:
            while self.engine.is_unfinished(answer):
                self.engine.step()
                if text := template.without_blanks(answer.text)[shown:]:
                    self.write(text)
                    shown += len(text)
        except KeyboardInterrupt:
            self.engine.cancel(answer)
            self.engine.step()
            self.say("(stopped)")
        self.write("\n")
        return answer.text.strip()


def run_chat(decoder: Decoder, settings: ChatSettings, lines: TextIO, output: TextIO) -> int:
    """Run a chat in the terminal until `lines` ends, and return the exit status. Raises ConfigError for settings that cannot be."""
    people = lines.isatty()

    def write(text: str) -> None:
        output.write(text)
        output.flush()

    def say(text: str) -> None:
        sys.stderr.write(f"{text.replace('max_tokens', argument('--max-new-tokens'))}\n")  # its name over HTTP

    chat = Chat(Engine(decoder), settings, write, say)
    if people:
        with suppress(ImportError):  # line editing and history of `input`, where Python has readline
            import readline  # noqa: F401
        say(f"{decoder.config.name}, domain {chat.domain.name}; /help says what there is")
    while (line := _line(chat, lines, people)) is not None:
        if line.startswith("/") and not line.startswith("//"):
            if not _try(chat.command, line, say):
                break
        elif line:
            _try(chat.answer, line.replace("//", "/", 1) if line.startswith("//") else line, say)
    return 0


def _try(do: Callable[[str], bool | None], line: str, say: Callable[[str], None]) -> bool:
    """Call `do` with a line and print its errors. Returns False if the chat ends."""
    try:
        return do(line) is not False
    except ApiError as error:
        say(error.detail)
    except UserError as error:
        say(str(error))
    return True


def _line(chat: Chat, lines: TextIO, people: bool) -> str | None:
    """Return the next line, stripped; None at the end."""
    if not people:
        line = lines.readline()
        return line.strip() if line else None
    try:
        return input(f"{chat.domain.name}> ").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        return ""
