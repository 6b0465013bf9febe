"""Adapter of models for lm-evaluation-harness, in one process. Importing this file registers the model "pangu-sigma" there.

`lm_eval.py` is the harness's own command with that model. Requests are tokenized and cut as the harness's `local-completions` does
against `pangu-sigma serve` with its tokenizer and max_length=model.seq_length, so that both give the same numbers.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import xxhash

from pangu_sigma.bars import Bar
from pangu_sigma.config import ConfigError
from pangu_sigma.config_file import validated
from pangu_sigma.domains import domains_of
from pangu_sigma.evaluate.result_cache import ResultCache
from pangu_sigma.generate.engine import Engine
from pangu_sigma.generate.request import Answer, Request
from pangu_sigma.generate.sampling import Sampling
from pangu_sigma.generate.text import open_engine

try:
    import lm_eval.models  # noqa: F401 (the harness loads its own models only while none is registered)
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ConfigError(
        f"lm-evaluation-harness cannot be loaded ({error}); install it: pip install 'pangu-sigma[evaluate]'"
    ) from error

logger = logging.getLogger(__name__)

_LIMIT_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the generation option for the maximum number of new tokens; the first that is present counts."""

_GROUPING_PREFIX = 16
"""Length of the common prefix by which prompts are grouped; shorter ones are not worth sharing."""

Pair = tuple[list[int], list[int]]
"""Token ids of a context, and of its continuation to score."""

_WARNINGS = {
    "contexts": "{} of {} contexts lost their beginning: {} tokens fit",
    "windows": "{} of {} continuations have {} tokens or more, so that they do not fit; they were scored in windows",
    "prompts": "{} of {} prompts lost their beginning, to leave room for the answer",
    "answers": "{} of {} answers have half of the {} tokens that the model can read, and not what the task asks for",
    "apart": "in {} of {} requests a token would reach over the end of the context; context and continuation were read on their "
    "own there. local-completions would lose or repeat characters, so its numbers differ for these",
}
"""Warnings about the requests of a call. Arguments: number of affected requests, number of all requests, `max_length`."""


@register_model("pangu-sigma")
class HarnessModel(LM):
    """Model of lm-evaluation-harness: one domain of a model of this project.

    truncated: (task name, item number) of requests that were cut, or scored in windows, because they exceed model.seq_length.
    cache: cache of the answers, with which a killed evaluation resumes; None for no cache.
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
        training. seed: of the first answer to a prompt, by default that of `local-completions`; each repeat has the next one.
        max_batch_size, device: passed to every model, not used. Raises ConfigError for an unknown domain and invalid numbers.
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
        model_length = config.model.seq_length
        if max_length is not None and not 3 <= max_length <= model_length:
            raise ConfigError(f"max_length={max_length} is not allowed: 3 to model.seq_length={model_length}")
        self.max_length = (max_length or model_length) - 1  # always with room for one token of the answer
        self._max_new_tokens, self._tags, self._seed = max_gen_toks, tags, seed
        self.truncated: set[tuple[str | None, int | None]] = set()
        self.cache: ResultCache | None = None
        self._warning_counts = Counter[str]()
        self._ids = lru_cache(maxsize=4096)(self._tokenize)  # choices of one question share its text
        if not tags and self.tokenizer.prompt("", self.domain):
            logger.warning(
                "domain %s was trained with a tag of the language before each text, and reads texts without it here, as "
                "local-completions sends them; tags=True among the model_args puts it there",
                domain,
            )

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-probability in nats, and True if greedy generation would return it. A
        continuation that exceeds the model's length is scored in windows, each token once."""
        texts = []
        for request in requests:
            context, continuation = self._pair(*request.args)
            is_long = len(continuation) >= self.max_length  # no room for a token of context
            if is_long or len(context) + len(continuation) > self.max_length:
                self._count_warning("windows" if is_long else "contexts", request)
            texts.append(self._windows(context, continuation) if is_long else [(context, continuation)])
        self._log_warnings(len(requests))
        return self._scores(texts, "loglikelihood", disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each whole text in nats; an <eot> precedes its first token. A text that exceeds the model's
        length is scored in windows, each token once."""
        windows = [self._windows([self.tokenizer.eot], self._ids(request.args[0], self._tags)) for request in requests]
        return [score for score, _ in self._scores(windows, "rolling", disable_tqdm)]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return for each request, (context, options of the task), the generated text, without the stop string that ended it."""
        # the harness repeats an object for each further answer to it; `repeats` numbers the answers to an object
        repeats = [number for _, equal_objects in groupby(requests, id) for number, _ in enumerate(equal_objects)]
        engine_requests = list(map(self._generation_request, requests, repeats))
        self._log_warnings(len(requests))
        return self._answers(engine_requests, lambda answer: answer.text, "generate_until", disable_tqdm)

    def _tokenize(self, text: str, tags: bool) -> list[int]:
        """Return the token ids of a text. tags: True to put the domain's language tag before it."""
        return (self.tokenizer.prompt if tags else self.tokenizer.encode)(text, self.domain)

    def _pair(self, context: str, continuation: str) -> Pair:
        """Tokenize a context and its continuation. Blanks at the end of the context move to the continuation."""
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        if not stripped:
            return [self.tokenizer.eot], self._ids(continuation, False)
        context_ids, all_ids = self._ids(stripped, self._tags), self._ids(stripped + continuation, self._tags)
        if not context_ids:  # the vocabulary has no token for it
            return [self.tokenizer.eot], all_ids
        if all_ids[: len(context_ids)] == context_ids:
            return context_ids, all_ids[len(context_ids) :]
        self._warning_counts["apart"] += 1  # a token reaches over the end of the context
        return context_ids, self._ids(continuation, False)

    def _windows(self, context: list[int], continuation: list[int]) -> list[Pair]:
        """Split a continuation that is too long into windows that score each token once, as `local-completions` does: with as much
        preceding text as fits, and only the last token of the context."""
        windows = get_rolling_token_windows(continuation, context[-1], self.max_length - 1, context_len=1)
        return [make_disjoint_window(window) for window in windows]

    def _count_warning(self, warning: str, request: Any) -> None:
        """Add a request to `truncated`, and to the number of requests in a warning of `_WARNINGS`."""
        self._warning_counts[warning] += 1
        self.truncated.add((request.task_name, request.doc_id))

    def _log_warnings(self, total: int) -> None:
        """Log how many of a call's `total` requests were cut or changed, and how, and begin to count anew."""
        for warning, number in self._warning_counts.items():
            logger.warning(_WARNINGS[warning].format(number, total, self.max_length))
        self._warning_counts.clear()

    def _generation_request(self, request: Any, repeat: int) -> Request:
        """Convert the harness's request for a generated answer to the engine's; a long prompt loses its beginning. repeat: number
        of the answer, for several answers to one prompt. Raises ConfigError for an unknown option of the task."""
        context, options = request.args[0], dict(request.args[1])
        until = options.pop("until", None) or []
        stop = [until] if isinstance(until, str) else list(until)
        limit = next((int(options[n]) for n in _LIMIT_NAMES if options.get(n) is not None), self._max_new_tokens)
        sampling = {name: options[name] for name in Sampling.model_fields if options.get(name) is not None}
        if options.pop("do_sample", None) is False:
            sampling["temperature"] = 0.0
        if unknown_options := options.keys() - {*_LIMIT_NAMES, *Sampling.model_fields}:
            raise ConfigError(f"the task asks for {', '.join(sorted(unknown_options))}, which this model does not know")
        if limit >= self.max_length:  # no room for a prompt
            limit = (self.max_length + 1) // 2
            self._warning_counts["answers"] += 1
        ids, room = self._ids(context, self._tags) or [self.tokenizer.eot], self.max_length - limit
        if len(ids) > room:
            self._count_warning("prompts", request)
        options_of_sampling, seed = validated(Sampling, sampling), self._seed + repeat
        return Request(self.domain, tuple(ids[-room:]), limit, options_of_sampling, seed, tuple(filter(None, stop)))

    def _scores(self, texts: Sequence[list[Pair]], label: str, quiet: bool) -> list[tuple[float, bool]]:
        """Return for each text the log-probability of its continuations in nats, and True if all their tokens were the likeliest.
        texts: the pairs (context, continuation) of each text. label: of the progress bar. quiet: True for no bar."""
        requests = []
        for context, continuation in (pair for pairs in texts for pair in pairs):
            ids = [*context, *continuation][-self.max_length :]
            first = len(ids) - len(continuation)
            requests.append(Request(self.domain, tuple(ids), 0, prompt_logprobs=1, scored_from=first))
        # the pairs of all texts are answered together, and their scores divided among the texts again
        pair_scores = iter(self._answers(requests, _score, label, quiet))
        scores_of_texts = [[next(pair_scores) for _ in pairs] for pairs in texts]
        return [(float(sum(s for s, _ in scores)), all(top for _, top in scores)) for scores in scores_of_texts]

    def _answers(self, requests: list[Request], extract: Callable[[Answer], Any], label: str, quiet: bool) -> list[Any]:
        """Answer the requests, or load their answers from the cache. Return `extract(answer)` for each request, in their order.

        extract: function that makes the result, a JSON value. label: of the progress bar. quiet: True for no bar."""
        cache_names = [f"answer {xxhash.xxh3_128_hexdigest(repr(request).encode())}" for request in requests]
        results: list[Any] = [self.cache.get(name) if self.cache else None for name in cache_names]
        order = [number for number in _submission_order(requests) if results[number] is None]
        total = len(requests)
        with (  # an error or Ctrl-C closes `answers`, which cancels unfinished ones
            closing(self.engine.answers_to([requests[number] for number in order])) as answers,
            Bar(total=total, initial=total - len(order), desc=label, unit="request", disable=quiet) as bar,
        ):
            for place, answer in answers:
                number = order[place]
                results[number] = extract(answer)
                if self.cache:
                    self.cache.put(cache_names[number], results[number])
                bar.update()
        return results


def _submission_order(requests: Sequence[Request]) -> list[int]:
    """Return the requests' numbers in the order of submission: longest first, but prompts with a common prefix in a row."""
    groups_by_prefix: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, request in enumerate(requests):
        groups_by_prefix[request.ids[:_GROUPING_PREFIX]].append(number)
    groups = sorted(groups_by_prefix.values(), key=lambda numbers: -max(len(requests[n].ids) for n in numbers))
    return [number for group in groups for number in sorted(group, key=lambda number: requests[number].ids)]


def _score(answer: Answer) -> tuple[float, bool]:
    """Return the log-probability in nats of an answer's scored prompt tokens, and True if each was the likeliest."""
    scored_tokens = answer.prompt[1:]  # the first one is only read
    total = sum(token.logprob or 0.0 for token in scored_tokens)
    return float(total), all((token.logprob or 0.0) >= token.top[0][1] for token in scored_tokens)
