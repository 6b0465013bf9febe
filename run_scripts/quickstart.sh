#!/usr/bin/env bash
# From nothing to a trained sparse model that answers from an exported graph, on a CPU. Takes no arguments.
# Works in the repository, wherever it is started: data/, runs/ and exports/ are there.
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
cd "$root"

config=model_configs/sigma_tiny.yaml
run=runs/sigma_tiny
model=exports/sigma_tiny
prompts=(--domain zh --prompt "今天" --domain en --prompt "The" --domain bilingual --prompt "文件" --domain code --prompt "def")
sampling=(--temperature 0.7 --top-p 0.9 --repetition-penalty 1.2)

echo "== text of four domains"
pangu-sigma prepare-data $config
echo "== training"
pangu-sigma train $config -o $run >/dev/null
echo "== held-out loss of the newest checkpoint, and a passage of each domain"
pangu-sigma evaluate $run --passages 1
echo "== one sample per domain"
rm -f $run/samples.json
pangu-sigma generate $run "${prompts[@]}" --max-new-tokens 40 "${sampling[@]}" --json $run/samples.json
echo "== export"
rm -rf $model
pangu-sigma export $run -o $model
pangu-sigma generate $model "${prompts[@]}" --max-new-tokens 40 "${sampling[@]}"
echo "== summary"
pangu-sigma report $run
printf '%-12s %s\n' samples $run/samples.json model $model
