"""LangChain: invoke, stream, an answer with a schema."""

import sys

from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", model="sigma-en", max_tokens=12, seed=1, max_retries=0)
print(repr(model.invoke("Say hello").content))
print("stream", [part.content for part in model.stream("Say hello")])
schema = {"title": "n", "type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"]}
structured = model.with_structured_output(schema | {"additionalProperties": False}, method="json_schema")
print("schema", structured.invoke("Give me a number"))
