"""OpenAI's Python package: a completion with log-probabilities, a streamed chat, an answer with a schema, a refusal."""

import sys
from typing import Any

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
model = client.models.list().data[-1].id
messages: Any = [{"role": "user", "content": "Say hello"}]
whole = client.completions.create(model=model, prompt="The", max_tokens=12, seed=1, logprobs=2)
print(model, repr(whole.choices[0].text), whole.choices[0].logprobs, whole.usage)
with client.chat.completions.stream(model=model, messages=messages, max_tokens=12, seed=1) as stream:
    print("stream", [event.delta for event in stream if event.type == "content.delta"])
schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema | {"additionalProperties": False}}}
asked = client.chat.completions.create(model=model, messages=messages, response_format=form)
print("schema", asked.choices[0].message.content, asked.choices[0].finish_reason)
try:
    client.completions.create(model=model, prompt="The", temperature=9)
except openai.BadRequestError as error:
    print("refused", error.code, error.param)
