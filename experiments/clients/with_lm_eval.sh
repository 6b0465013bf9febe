#!/bin/sh
# lm-evaluation-harness over HTTP, with a task of four items that needs no download.
set -e
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
printf '{"text": "the cat", "choices": [" sees a dog", " xyz"], "label": %s}\n' 0 0 1 0 > "$folder/items.jsonl"
cat > "$folder/four.yaml" <<YAML
task: four
dataset_path: json
dataset_kwargs: {data_files: {test: $folder/items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: text
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc}]
YAML
lm_eval run --model local-completions --tasks four --include_path "$folder" \
  --model_args "model=sigma-en,base_url=$1/sigma-en/v1/completions,max_length=${2:-256}"
