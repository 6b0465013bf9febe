"""/tokenize, /detokenize and /tokenizer_info as in vLLM; with them lm-evaluation-harness needs no tokenizer of its own."""

from __future__ import annotations

from pangu_sigma.serve.refusals import ApiError
from pangu_sigma.serve.requests import DetokenizeRequest, TokenizeRequest
from pangu_sigma.serve.responses import Detokenized, Tokenized, TokenizerInfo
from pangu_sigma.serve.served import Served


async def tokenize(served: Served, body: TokenizeRequest, of_path: str | None) -> Tokenized:
    """Tokenize a text in a domain. Raises ApiError."""
    domain = served.domain(body.model, of_path)
    ids = await served.prompts.in_thread(served.prompts.read, body.prompt, domain, body.add_special_tokens is not False)
    names = [served.texts.shown(token) for token in ids] if body.return_token_strs else None
    return Tokenized(count=len(ids), max_model_len=served.length, tokens=ids, token_strs=names)


def detokenize(served: Served, body: DetokenizeRequest, of_path: str | None) -> Detokenized:
    """Answer POST /detokenize with the text of token ids, which is the same in every domain. of_path: as in `Served.domain`."""
    if body.model is not None:
        served.domain(body.model, of_path)
    most = served.tokenizer.size - 1
    if outside := [token for token in body.tokens if token > most]:
        raise ApiError(400, f"tokens: {outside[0]} does not exist; there are 0 … {most}", "tokens", "invalid_value")
    return Detokenized(prompt=served.tokenizer.decode(body.tokens))


def tokenizer_info(served: Served, name: str | None, of_path: str | None) -> TokenizerInfo:
    """Answer GET /tokenizer_info with what a client needs to use token ids and chats. name, of_path: as in `Served.domain`."""
    names, tokenizer = served.tokenizer.vocabulary.pieces, served.tokenizer
    return TokenizerInfo(
        tokenizer_class="PanGuSigmaTokenizer",
        vocab_size=tokenizer.size,
        model_max_length=served.length,
        bos_token=None,
        eos_token=names[tokenizer.eot],
        pad_token=names[tokenizer.pad],
        unk_token=names[tokenizer.unk],
        chat_template=served.template(served.domain(name, of_path)).jinja(),
    )
