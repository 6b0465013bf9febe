#!/bin/sh
# llm: a chat and a completion. Its models are listed in a file of its user folder.
set -e
LLM_USER_PATH=$(mktemp -d)
export LLM_USER_PATH OPENAI_API_KEY=none
trap 'rm -r "$LLM_USER_PATH"' EXIT
cat > "$LLM_USER_PATH/extra-openai-models.yaml" <<YAML
- {model_id: sigma, model_name: sigma-en, api_base: "$1/v1"}
- {model_id: sigma-text, model_name: sigma-en, api_base: "$1/v1", completion: true}
YAML
llm -m sigma -o max_tokens 12 -o seed 1 'Say hello'
llm -m sigma --no-stream -o max_tokens 12 -o seed 1 'Say hello'
llm -m sigma-text -o max_tokens 12 -o seed 1 'The'
