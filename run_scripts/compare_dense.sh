#!/usr/bin/env bash
# Does RRE earn its place? sigma_tiny against a dense PanGu-α of the same active size, trained on the same tokens in the same order, with
# several seeds, and evaluated on all held-out tokens: paired differences with their errors, and their mean over seeds.
#
#   compare_dense.sh [--seeds "1 2 3"] [--folder runs/compare_dense] [--set KEY=VALUE ...]
#
# The dense model keeps the embedding slots, so that experts are the only difference. A seed decides initial values and the order of
# samples, and the routing tables too, because they are drawn as the rest is: routing.seed is the seed less 1, so that seed 1 is
# sigma_tiny as it is shipped. Other --set options go to both models; `--set routing.seed=0` keeps the tables.
# Three seeds take over 20 minutes. It can be stopped: the same command keeps what is trained and goes on. With other --set options
# use another --folder.
# Works in the repository, wherever it is started: data/ and runs/ are there.
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
cd "$root"

config=model_configs/sigma_tiny.yaml
dense=(--set name=alpha_tiny --set model.dense_layers=6 --set model.rre_layers=0)
seeds="1 2 3"
folder=runs/compare_dense
options=()
while [ $# -gt 0 ]; do
  case "$1" in
    --seeds) seeds=${2:?--seeds needs numbers, such as \"1 2 3\"}; shift 2 ;;
    --folder) folder=${2:?--folder needs a folder}; shift 2 ;;
    --set) options+=(--set "${2:?--set needs KEY=VALUE}"); shift 2 ;;
    *) echo "error: $1 is not an option; usage: compare_dense.sh [--seeds \"1 2 3\"] [--folder FOLDER] [--set KEY=VALUE ...]" >&2; exit 2 ;;
  esac
done

mkdir -p "$folder"
pangu-sigma prepare-data $config "${options[@]}"
sparse_runs=() dense_runs=()
for seed in $seeds; do
  drawn=(--set seed="$seed" --set routing.seed=$((seed - 1)))
  sparse_runs+=("$folder/sigma_tiny_$seed")
  dense_runs+=("$folder/alpha_tiny_$seed")
  echo "== seed $seed" >&2
  pangu-sigma train $config --output "$folder/sigma_tiny_$seed" "${drawn[@]}" "${options[@]}" >/dev/null
  pangu-sigma train $config --output "$folder/alpha_tiny_$seed" "${drawn[@]}" "${dense[@]}" "${options[@]}" >/dev/null
done
pangu-sigma evaluate "${sparse_runs[@]}" --against "${dense_runs[@]}" --all-samples | tee "$folder/differences.txt"
