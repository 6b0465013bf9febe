#!/usr/bin/env bash
# Does inheriting pay? A small dense PanGu-α learns Chinese only. Then, on the same tokens of four domains in the same order: it goes on
# as a Σ (inherited), it goes on dense (continued), and a Σ begins with nothing (scratch). With several seeds, each at several learning
# rates; compared at the best rate of each, on all held-out tokens, paired by sample.
#
#   compare_inherit.sh [--seeds "1 2 3"] [--rates "7e-4 2e-3 6e-3"] [--folder runs/compare_inherit] [--set KEY=VALUE ...]
#
# The best rate of an arm is that of the lowest held-out loss, mean over seeds and domains, on the samples that training evaluates on.
# A seed decides initial values, the order of samples and the routing tables. The parent has the vocabulary of the four domains, but
# one domain and one embedding slot. --set options go to all trainings. It can be stopped: the same command goes on; with other --set options
# use another --folder. What comes out is in the folder: differences.txt and .json, curves.png, and times.txt, the seconds of each run.
# Works in the repository, wherever it is started: data/ and runs/ are there.
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
cd "$root"

config=model_configs/sigma_tiny.yaml
seeds="1 2 3" rates="7e-4 2e-3 6e-3" folder=runs/compare_inherit
usage='compare_inherit.sh [--seeds "1 2 3"] [--rates "7e-4 2e-3"] [--folder FOLDER] [--set KEY=VALUE ...]'
source "$root/run_scripts/comparing.sh"
read_options "$@"
data=data/$(basename -- "$folder") # of its own: its slots have fewer rows than sigma_tiny's

small=(--set model.hidden=128 --set model.ffn=512 --set model.heads=4 --set model.dense_layers=2 --set model.rre_layers=2 --set model.slot_rows=4096)
schedule=(--set train.steps=200 --set train.optimizer.peak_lr=2e-3 --set train.optimizer.warmup_steps=20 --set train.optimizer.decay_steps=180 --set train.optimizer.end_lr=0.0)
often=(--set train.eval_interval=50 --set train.eval_batches=2 --set train.checkpoint_interval=100 --set train.keep_checkpoints=1)
sparse=("${small[@]}" "${schedule[@]}" "${often[@]}" --set data.path="$data" "${options[@]}")
dense=("${sparse[@]}" --set model.dense_layers=4 --set model.rre_layers=0)
chinese=(--set 'domains=[{name: zh, format: text, language: zh, slot: zh}]' --set data.domains_per_step=1 --set data.domain_sets=1
  --set data.path="${data}_zh" --set vocabulary.english_model="$data/tokenizer/english.model")

begin_folder "${options[*]}"
total=$(($(wc -w <<<"$seeds") * (3 + 3 * $(wc -w <<<"$rates"))))

# network_of ARM: puts the options of its network into `network`
network_of() {
  network=("${sparse[@]}")
  if [ "$1" = continued ]; then network=("${dense[@]}"); fi
}

pangu-sigma prepare-data $config "${sparse[@]}"
pangu-sigma prepare-data $config "${dense[@]}" "${chinese[@]}"
for seed in $seeds; do
  drawn=(--set seed="$seed" --set routing.seed=$((seed - 1)))
  parent=$folder/parent_$seed
  timed "parent_$seed" pangu-sigma train $config --output "$parent" "${dense[@]}" "${chinese[@]}" "${drawn[@]}"
  for arm in inherited continued; do
    network_of $arm
    timed "${arm}_$seed" pangu-sigma inherit "$parent" $config --output "$folder/${arm}_$seed" "${network[@]}" "${drawn[@]}"
  done
  for rate in $rates; do
    for arm in inherited continued scratch; do
      network_of $arm
      run=$folder/${arm}_${seed}_$rate
      if [ $arm != scratch ] && [ ! -e "$run" ]; then
        rm -rf "$run.copy" && cp -r "$folder/${arm}_$seed" "$run.copy" && mv "$run.copy" "$run"
      fi
      timed "${arm}_${seed}_$rate" pangu-sigma train $config --output "$run" "${network[@]}" "${drawn[@]}" --set train.optimizer.peak_lr="$rate"
    done
  done
done

python - "$folder" "$seeds" "$rates" <<'PYTHON'
import sys
from pathlib import Path

from pangu_sigma.evaluate.arms import Arm, write_comparison

folder, seeds, rates = Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3].split()
names = {"inherited": "Σ inherited", "continued": "α continued", "scratch": "Σ from scratch"}
first, *others = [Arm(name, {r: [folder / f"{arm}_{s}_{r}" for s in seeds] for r in rates}) for arm, name in names.items()]
print(write_comparison(first, others, folder))
PYTHON
say_times
