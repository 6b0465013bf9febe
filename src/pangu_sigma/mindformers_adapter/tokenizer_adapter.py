"""Tokenizer of the project as MindFormers' `PreTrainedTokenizer`: `processor.tokenizer` of a YAML."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mindformers.models import PreTrainedTokenizer
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

from pangu_sigma.config import ConfigError
from pangu_sigma.domains import domains_of
from pangu_sigma.mindformers_adapter.model import PanGuSigmaConfig
from pangu_sigma.text.tokenizer import Tokenizer


@MindFormerRegister.register(MindFormerModuleType.TOKENIZER)
class PanGuSigmaTokenizer(PreTrainedTokenizer):
    """MindFormers tokenizer for the text of one domain. It adds no language tag and no <eot>, and no text encodes to a control id.

    A token's name is its piece; if PanGu-α and the English model have the same piece, the later id is named `piece#id`.
    """

    def __init__(self, tokenizer_dir: str, model_config: dict[str, Any], domain: str, **keys: Any):
        """tokenizer_dir: tokenizer folder of a run. model_config: that section of the YAML. domain: name of the text's domain.
        Raises DataError for a damaged folder, ConfigError for an unknown domain.
        """
        domains, self.sigma = domains_of(PanGuSigmaConfig(**model_config).sigma), Tokenizer.load(Path(tokenizer_dir))
        try:
            self.domain = domains.named(domain)
        except ConfigError as error:
            raise ConfigError(f"processor.tokenizer.domain: {error}") from None
        self.ids: dict[str, int] = {}
        for i, piece in enumerate(self.sigma.vocabulary.pieces):
            self.ids[f"{piece}#{i}" if piece in self.ids else piece] = i
        self.names = [*self.ids]
        controls = {"unk_token": Tokenizer.unk, "pad_token": Tokenizer.pad, "eos_token": Tokenizer.eot}
        special = {key: self.names[i] for key, i in controls.items()}
        super().__init__(**{**special, "split_special_tokens": True, **keys})

    @property
    def vocab_size(self) -> int:
        return self.sigma.size

    def get_vocab(self) -> dict[str, int]:
        return dict(self.ids)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self.names[i] for i in self.sigma.encode(text, self.domain)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, Tokenizer.unk)

    def _convert_id_to_token(self, index: int) -> str:
        return self.names[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self.sigma.decode(self.ids[token] for token in tokens)

    def _decode(self, token_ids: int | Iterable[int], **_: Any) -> str:
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self.sigma.decode(int(i) for i in ids)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write a tokenizer folder, which can be `tokenizer_dir`, and return its files."""
        self.sigma.save(Path(save_directory))
        return tuple(str(file) for file in sorted(Path(save_directory).iterdir()))
