"""Adapter of models for lm-evaluation-harness, in one process. Importing this file registers the model "pangu-sigma" there.

`lm_eval.py` is the harness's own command with that model. Requests are tokenized and cut as the harness's `local-completions` does
against `pangu-sigma serve` with its tokenizer and max_length=model.seq_length, so that both give the same numbers.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import xxhash

from pangu_sigma.bars import Bar
from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.evaluate.benchmarks.prompt_runner import complete_in_parts
from pangu_sigma.evaluate.benchmarks.result_cache import ResultCache
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Answer, Request
from pangu_sigma.generate.sampling import Sampling, check_text
from pangu_sigma.generate.text import open_engine

try:
    import lm_eval.models  # noqa: F401 (the harness loads its own models only while none is registered)
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.tasks import TaskManager  # noqa: F401 (from here, whose error says how the harness is installed)
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ConfigError(
        f"lm-evaluation-harness cannot be loaded ({error}); install it: pip install 'pangu-sigma[evaluate]'"
    ) from error

logger = logging.getLogger(__name__)

_MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the generation option for the maximum number of new tokens; the first that is present counts."""

_SAMPLING = tuple(field.name for field in fields(Sampling))

_ALIKE = 16
"""Length of the common prefix by which prompts are grouped; shorter ones are not worth sharing."""

Pair = tuple[list[int], list[int]]
"""Token ids of a context, and of its continuation to score."""


@register_model("pangu-sigma")
class HarnessModel(LM):
    """Model of lm-evaluation-harness: one domain of a model of this project.

    truncated: (task name, item number) of requests that were cut, or scored in windows, because they exceed model.seq_length.
    kept: cache of the answers, with which a killed evaluation resumes; None for no cache.
    """

    def __init__(
        self,
        path: str | Engine,
        domain: str,
        batch_size: int | str = 8,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        tags: bool = False,
        seed: int = 1234,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        """path: a run folder, an exported model, or an engine, whose batch is fixed. batch_size: texts in a batch.

        max_length: maximum tokens of a text and one new token; model.seq_length by default. max_gen_toks: maximum tokens of an
        answer if the task does not set it. tags: True to put the domain's language tag, if it has one, before each text, as in
        training. seed: seed of each sampled answer, by default that of `local-completions`. max_batch_size, device: passed by the
        harness to every model, not used. Raises ConfigError for a folder that is no model, an unknown domain, and invalid numbers.
        """
        super().__init__()
        lanes = 8 if str(batch_size).startswith("auto") else int(batch_size)
        if lanes < 1:
            raise ConfigError(f"batch_size={batch_size} is not allowed: 1 or more, or auto, which is 8")
        if device not in (None, "cpu"):  # the harness's default is cuda:0
            logger.info("device=%s is not used: this model answers on the CPU", device)
        self.engine = path if isinstance(path, Engine) else open_engine(Path(path), lanes=lanes)
        config, self.tokenizer = self.engine.decoder.config, self.engine.decoder.tokenizer
        self.domain = domains_of(config).named(domain)
        longest = config.model.seq_length
        if max_length is not None and not 3 <= max_length <= longest:
            raise ConfigError(f"max_length={max_length} is not allowed: 3 to model.seq_length={longest}")
        self.max_length = (max_length or longest) - 1  # always with room for one token of the answer
        self._most, self._tags, self._seed = max_gen_toks, tags, seed
        self.truncated: set[tuple[str | None, int | None]] = set()
        self.kept: ResultCache | None = None
        if not tags and self.tokenizer.prompt("", self.domain):
            logger.warning(
                "domain %s was trained with a tag of the language before each text, and reads texts without it here, as "
                "local-completions sends them; tags=True among the model_args puts it there",
                domain,
            )

    @property
    def tokenizer_name(self) -> str:
        """Name of tokenizer and domain, under which lm-evaluation-harness caches requests."""
        return f"pangu-sigma-{self.tokenizer.hash[:16]}-{self.domain.name}"

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-probability in nats, and whether greedy generation gives it.

        A continuation that exceeds the model's length is scored in windows, each token once.
        """
        reader = _Reader(self)
        pairs = [reader.pair(*request.args) for request in requests]
        windows = [self._windows(*pair) if len(pair[1]) >= self.max_length else [pair] for pair in pairs]
        self._note_cut(requests, pairs, windows)
        scores = self._scores(windows, "loglikelihood", disable_tqdm)
        reader.report()
        for request, result in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each whole text in nats; an <eot> precedes its first token.

        A text that exceeds the model's length is scored in windows, each token once.
        """
        reader = _Reader(self)
        windows = [self._windows([self.tokenizer.eot], reader.ids(request.args[0])) for request in requests]
        totals = [score for score, _ in self._scores(windows, "rolling", disable_tqdm)]
        reader.report()
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, context: list[int], continuation: list[int]) -> list[Pair]:
        """Split a text into windows that fit, each with as much preceding context as fits."""
        whole = get_rolling_token_windows(continuation, context[-1], self.max_length - 1, context_len=1)
        return [make_disjoint_window(window) for window in whole]

    def _note_cut(self, requests: list[Any], pairs: list[Pair], windows: list[list[Pair]]) -> None:
        """Record and report the contexts that lose their beginning, and the continuations scored in windows."""
        long = [len(parts) > 1 for parts in windows]
        cut = [not much and len(c) + len(t) > self.max_length for (c, t), much in zip(pairs, long, strict=True)]
        self.truncated |= {(r.task_name, r.doc_id) for r, a, b in zip(requests, long, cut, strict=True) if a or b}
        if sum(cut):
            logger.warning(
                "%d of %d contexts lost their beginning: %d tokens fit", sum(cut), len(pairs), self.max_length
            )
        if sum(long):
            logger.warning(
                "%d of %d continuations have %d tokens or more, so that they do not fit; they were scored in windows",
                *(sum(long), len(pairs), self.max_length),
            )

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return for each request, (context, options of the task), the generated text, without the stop string that ended it."""
        reader = _Reader(self)
        own_requests = []
        for request in requests:
            before = reader.cut_prompts
            own_requests.append(self._continuation(reader, *request.args))
            if reader.cut_prompts > before:
                self.truncated.add((request.task_name, request.doc_id))
        reader.report()
        texts = self._answers(own_requests, lambda answer: answer.text, "generate_until", disable_tqdm)
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _continuation(self, reader: _Reader, context: str, options: dict[str, Any]) -> Request:
        options = dict(options)
        until = options.pop("until", None) or []
        stop = [until] if isinstance(until, str) else list(until)
        most = next((int(options[name]) for name in _MOST_TOKENS if options.get(name) is not None), self._most)
        sampled = options.pop("do_sample", None)
        sampling = {name: options[name] for name in _SAMPLING if options.get(name) is not None}
        if sampled is False:
            sampling["temperature"] = 0.0
        if strange := options.keys() - {*_MOST_TOKENS, *_SAMPLING}:
            raise ConfigError(f"the task asks for {', '.join(sorted(strange))}, which this model does not know")
        room = self.max_length - most
        if room < 1:
            raise ConfigError(
                f"an answer of max_gen_toks={most} leaves no room for a prompt: together they have {self.max_length} tokens; give "
                "--gen_kwargs max_gen_toks=…, or use a model of a larger model.seq_length"
            )
        ids = reader.cut(reader.ids(context) or [self.tokenizer.eot], room)
        return Request(self.domain, tuple(ids), most, Sampling(**sampling), self._seed, tuple(filter(None, stop)))

    def _scores(self, texts: Sequence[list[Pair]], what: str, quiet: bool) -> list[tuple[float, bool]]:
        """Return for each text, given as pairs, the continuations' log-probability, and whether each token was the likeliest."""
        requests = []
        for context, continuation in (pair for pairs in texts for pair in pairs):
            ids = [*context, *continuation][-self.max_length :]
            first = len(ids) - len(continuation)
            requests.append(Request(self.domain, tuple(ids), 0, prompt_logprobs=1, scored_from=first))
        scores = iter(self._answers(requests, _score_of, what, quiet))
        parts = [[next(scores) for _ in pairs] for pairs in texts]
        return [(float(sum(s for s, _ in each)), all(greedy for _, greedy in each)) for each in parts]

    def _answers(
        self, requests: Sequence[Request], extract: Callable[[Answer], Any], what: str, quiet: bool
    ) -> list[Any]:
        """Return what `extract` gives for each answer, in the order of the requests."""
        names = [f"answer {xxhash.xxh3_128_hexdigest(repr(request).encode())}" for request in requests]
        results: list[Any] = [self.kept.get(name) if self.kept else None for name in names]
        order = [number for number in _in_order(requests) if results[number] is None]
        total = len(requests)
        with Bar(total=total, initial=total - len(order), desc=what, unit="request", disable=quiet) as bar:

            def finished(position: int, value: Any) -> None:
                results[order[position]] = value
                if self.kept:
                    self.kept.put(names[order[position]], value)
                bar.update()

            complete_in_parts(self.engine, [requests[number] for number in order], extract, finished)
        return results


def _in_order(requests: Sequence[Request]) -> list[int]:
    """Return the order of submission: longest first, and prompts with a common prefix together, so that the prefix is read once."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, request in enumerate(requests):
        alike[request.ids[:_ALIKE]].append(number)
    groups = sorted(alike.values(), key=lambda numbers: -max(len(requests[number].ids) for number in numbers))
    return [number for group in groups for number in sorted(group, key=lambda number: requests[number].ids)]


def _score_of(answer: Answer) -> tuple[float, bool]:
    scored = answer.prompt[1:]
    total = sum(token.logprob or 0.0 for token in scored)
    return float(total), all((token.logprob or 0.0) >= token.top[0][1] for token in scored)


class _Reader:
    """Tokenizer of the texts of one call, which reports afterwards how many were cut."""

    def __init__(self, model: HarnessModel):
        self._tokenizer, self._domain, self._tags = model.tokenizer, model.domain, model._tags
        self._apart = self.cut_prompts = self._read = 0
        self.ids = lru_cache(maxsize=4096)(self._ids)  # choices of one question share its text

    def _ids(self, text: str, tags: bool = True) -> list[int]:
        check_text(text, "a text of the task")
        if tags and self._tags:
            return self._tokenizer.prompt(text, self._domain)
        return self._tokenizer.encode(text, self._domain)

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokenize a context and its continuation. Trailing blanks of the context belong to the continuation."""
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        self._read += 1
        if not stripped:
            return [self._tokenizer.eot], self.ids(continuation, tags=False)
        before, whole = self.ids(stripped), self.ids(stripped + continuation)
        if not before:  # nothing of it is a token of this vocabulary
            return [self._tokenizer.eot], whole
        if whole[: len(before)] == before:
            return before, whole[len(before) :]
        self._apart += 1
        return before, self.ids(continuation, tags=False)

    def cut(self, ids: list[int], room: int) -> list[int]:
        """Return the last `room` ids."""
        self._read += 1
        self.cut_prompts += len(ids) > room
        return ids[-room:]

    def report(self) -> None:
        """Log how many prompts were cut and how many pairs were tokenized separately."""
        if self.cut_prompts:
            logger.warning(
                "%d of %d prompts lost their beginning, to leave room for the answer", self.cut_prompts, self._read
            )
        if self._apart:
            logger.warning(
                "in %d of %d requests a token would reach over the end of the context; context and continuation were read on their "
                "own there. local-completions would lose or repeat characters, so its numbers differ for these",
                self._apart,
                self._read,
            )
