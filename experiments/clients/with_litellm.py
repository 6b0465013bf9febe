"""LiteLLM: a chat, a streamed chat, a completion."""

import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download of prices
import litellm

options = {"api_base": f"{sys.argv[1]}/v1", "api_key": "none", "max_tokens": 12, "seed": 1}
messages = [{"role": "user", "content": "Say hello"}]
whole = litellm.completion(model="openai/sigma-en", messages=messages, **options)
print(repr(whole.choices[0].message.content), whole.usage.total_tokens)
parts = litellm.completion(model="openai/sigma-en", messages=messages, stream=True, **options)
print("stream", repr("".join(part.choices[0].delta.content or "" for part in parts)))
text = litellm.text_completion(model="text-completion-openai/sigma-en", prompt="The", **options)
print("completion", repr(text.choices[0].text), text.choices[0].finish_reason)
