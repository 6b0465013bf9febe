#!/usr/bin/env bash
# Does the method learn? Five ways to give a token its FFN, on the same samples in the same order, with the same active size:
#
#   dense      one FFN for all: a PanGu-α
#   random     RRE, `routing.table=random`: domain → group, token id → one of the group's experts (the paper's)
#   balanced   RRE, `routing.table=balanced`
#   hash       one level: token id → one of all experts, in every domain the same (as DeepSeek-V4's first layers): bench/hashing.py
#   gate       a learned top-1 gate over all experts (Switch Transformer), with its balance loss; drops nothing: bench/switch.py
#
#   compare_methods.sh [--steps 160] [--seeds "1 2 3"] [--rates "7e-4 2e-3 6e-3"] [--folder runs/compare_methods] [--set KEY=VALUE ...]
#
# With several seeds, each at several learning rates; compared at the best rate of each, on all held-out tokens, paired by sample. The best
# rate of an arm is that of the lowest held-out loss at the end, mean over seeds and domains. A seed decides initial values, the order of
# samples, and the tables. All arms have the same embedding slots and the same Adam; every step has all four domains, so all experts are
# active, and ECSS, which would change nothing but the time, is off.
# It can be stopped: the same command goes on, and keeps what has ended; with other --steps or --set options use another --folder. What comes out
# is in the folder: differences.txt, .json and .png, and times.txt, the seconds of each run.
# Works in the repository, wherever it is started: data/ and runs/ are there.
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
cd "$root"

config=model_configs/sigma_tiny.yaml
steps=160 seeds="1 2 3" rates="7e-4 2e-3 6e-3" folder=runs/compare_methods
usage='compare_methods.sh [--steps 160] [--seeds "1 2 3"] [--rates "7e-4 2e-3"] [--folder FOLDER] [--set KEY=VALUE ...]'
source "$root/run_scripts/comparing.sh"
own_option() {
  [ "$1" = --steps ] && steps=${2:?--steps needs a number, such as 160}
}
read_options "$@"
[[ $steps =~ ^[1-9][0-9]+$ ]] || { echo "error: --steps $steps: a number of at least 10 is needed, a tenth of it is the warm-up" >&2; exit 2; }

small=(--set model.hidden=128 --set model.ffn=512 --set model.heads=4 --set model.dense_layers=2 --set model.rre_layers=2 --set model.slot_rows=4096)
schedule=(--set train.steps="$steps" --set train.optimizer.warmup_steps=$((steps / 10)) --set train.optimizer.decay_steps=$((steps - steps / 10))
  --set train.optimizer.end_lr=0.0 --set train.loss_scale.initial=1 --set train.loss_scale.window=$((steps + 1)))
at_the_end=(--set train.eval_interval="$steps" --set train.eval_batches=1000000 --set train.checkpoint_interval=100 --set train.keep_checkpoints=1)
all=("${small[@]}" "${schedule[@]}" "${at_the_end[@]}" --set ecss.enabled=false --set data.path="data/$(basename -- "$folder")" "${options[@]}")

begin_folder "--set train.steps=$steps${options[*]:+ ${options[*]}}"
total=$(($(wc -w <<<"$seeds") * 5 * $(wc -w <<<"$rates")))

# command_of ARM: puts what trains it into `command`, and the options of its network into `network`
command_of() {
  command=(pangu-sigma train) network=("${all[@]}")
  case "$1" in
    dense) network+=(--set model.dense_layers=4 --set model.rre_layers=0) ;;
    balanced) network+=(--set routing.table=balanced) ;;
    hash | gate) command=(python -m pangu_sigma.bench.peer_runs "$1") ;;
  esac
}

pangu-sigma prepare-data $config "${all[@]}"
for seed in $seeds; do
  drawn=(--set seed="$seed" --set routing.seed=$((2 * (seed - 1)))) # layer l draws from routing.seed + l: no two seeds share a table
  for rate in $rates; do
    for arm in random dense balanced hash gate; do
      command_of $arm
      name=${arm}_${seed}_$rate
      timed "$name" "${command[@]}" $config --output "$folder/$name" "${network[@]}" "${drawn[@]}" --set train.optimizer.peak_lr="$rate"
    done
  done
done

python - "$folder" "$seeds" "$rates" <<'PYTHON'
import sys
from pathlib import Path

from pangu_sigma.evaluate.arms import Arm
from pangu_sigma.evaluate.methods import write_methods

folder, seeds, rates = Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3].split()
names = {"random": "RRE random", "dense": "dense", "balanced": "RRE balanced", "hash": "hashing", "gate": "learned gate"}
first, *others = [Arm(name, {r: [folder / f"{arm}_{s}_{r}" for s in seeds] for r in rates}) for arm, name in names.items()]
print(write_methods(first, others, folder))
PYTHON
say_times
