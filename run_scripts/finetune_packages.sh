#!/usr/bin/env bash
# Fine-tuning on two tasks whose text packages ship: what is learned, and what is forgotten of all other domains.
#
#   translation_en_zh   messages of programs and their Chinese translations; tuned on some programs, tested on others, and pre-training
#                       has seen neither
#   qa                  "What is NAME?", answered by the first line of NAME's manual page; held out by package
#
# Small models of four domains, a Σ and a dense one of the same active size, with the same embedding slots, are trained on the same samples
# at the same rate. Then the Σ is tuned three ways (its experts alone, experts and slot, everything), and the dense one; all on the same
# examples, the same number of steps, the same rates. The rate of an arm is that of its lowest dev loss with the first seed; its other
# seeds are tuned at that rate alone. Before and after, each answers the test items greedily. No message of the test stands in what a model was
# trained or tuned on; how many were left out for that is printed.
#
#   finetune_packages.sh [--tasks "translation_en_zh qa"] [--steps 300] [--tune-steps 120] [--seeds "1 2 3"] [--rates "1e-3 3e-3 9e-3"]
#                        [--folder runs/finetune_packages] [--set KEY=VALUE ...]
#
# --steps are those of pre-training, --set options go to it. The manual pages are of Debian's packages: apt-get downloads them, after an
# apt-get update; where there is no apt-get, leave qa away. It can be stopped: the same command goes on, and keeps what has ended; with other
# --steps, --tune-steps or --set options use another --folder. What comes out is in the folder: <task>.txt and .json, every answer in
# answers/, and times.txt, the seconds of each run. Works in the repository, wherever it is started: data/ and runs/ are there.
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
cd "$root"

config=model_configs/sigma_tiny.yaml
tasks="translation_en_zh qa" steps=300 tune_steps=120 seeds="1 2 3" rates="1e-3 3e-3 9e-3" folder=runs/finetune_packages
usage='finetune_packages.sh [--tasks "translation_en_zh qa"] [--steps 300] [--tune-steps 120] [--seeds "1 2 3"] [--rates "1e-3 3e-3"] [--folder FOLDER] [--set KEY=VALUE ...]'
source "$root/run_scripts/comparing.sh"
own_option() {
  case "$1" in
    --tasks) tasks=${2:?--tasks needs names, such as \"translation_en_zh qa\"} ;;
    --steps) steps=${2:?--steps needs a number, such as 300} ;;
    --tune-steps) tune_steps=${2:?--tune-steps needs a number, such as 120} ;;
    *) return 1 ;;
  esac
}
read_options "$@"
for number_of in "$steps" "$tune_steps"; do
  [[ $number_of =~ ^[1-9][0-9]*$ ]] || { echo "error: $number_of: --steps and --tune-steps need a number of at least 1" >&2; exit 2; }
done

data=data/$(basename -- "$folder") # of its own: its slots have fewer rows than sigma_tiny's
small=(--set model.hidden=128 --set model.ffn=512 --set model.heads=4 --set model.dense_layers=2 --set model.rre_layers=2 --set model.slot_rows=4096)
schedule=(--set train.steps="$steps" --set train.optimizer.peak_lr=2e-3 --set train.optimizer.warmup_steps=$((steps / 10))
  --set train.optimizer.decay_steps=$((steps - steps / 10)) --set train.optimizer.end_lr=2e-4)
often=(--set train.eval_interval="$steps" --set train.eval_batches=4 --set train.checkpoint_interval="$steps" --set train.keep_checkpoints=1)
sparse=("${small[@]}" "${schedule[@]}" "${often[@]}" --set data.path="$data" "${options[@]}")
dense=("${sparse[@]}" --set model.dense_layers=4 --set model.rre_layers=0)
third=$(((tune_steps + 2) / 3))
tuning=(--set train.steps=$((3 * third)) --set train.eval_interval=$third --set train.checkpoint_interval=$third --set train.keep_checkpoints=1
  --set train.optimizer.end_lr=0.0 --set finetune.patience=1000)
arms="experts slot all dense"

begin_folder "--steps $steps --tune-steps $tune_steps${options[*]:+ ${options[*]}}"
count() { wc -w <<<"$1"; }
total=$((2 * $(count "$seeds") + $(count "$tasks") * $(count "$arms") * ($(count "$rates") + $(count "$seeds") - 1)))

# options_of TASK ARM: puts what the arm starts with into `parent`, and its options into `own`; qa is in English here
options_of() {
  parent=sigma own=(--task "$1")
  case "$2" in
    experts) own+=(--learn experts) ;;
    slot) own+=(--learn experts+slot) ;;
    all) own+=(--learn all) ;;
    dense) parent=dense own+=(--learn all) ;;
  esac
  if [ "$1" = qa ]; then
    own+=(--domain en --set 'chat.system="{content}\n"' --set 'chat.user="Question: {content}\n"' --set 'chat.assistant="Answer: {content}\n"')
  fi
}

# tune TASK ARM SEED RATE
tune() {
  options_of "$1" "$2"
  local name=${1}_${2}_${3}_$4
  timed "$name" pangu-sigma finetune "$folder/${parent}_$3" "${own[@]}" --train-file "$folder/tasks/$1/train.jsonl" --dev-file "$folder/tasks/$1/dev.jsonl" \
    --output "$folder/$name" "${tuning[@]}" --set seed="$3" --set train.optimizer.peak_lr="$4"
}

# best_of TASK ARM: prints the rate of the lowest dev loss with the first seed
best_of() {
  python -c 'import sys
from pathlib import Path
from pangu_sigma.finetune.tuned_arms import best_rate
print(best_rate({rate: Path(f"{sys.argv[1]}_{rate}") for rate in sys.argv[2:]}))' "$folder/${1}_${2}_${seeds%% *}" $rates
}

pangu-sigma prepare-data $config "${sparse[@]}"
python - "$folder" "$tasks" $config "$data" <<'PYTHON' | tee "$folder/tasks.txt"
import sys
from pathlib import Path

from pangu_sigma.config_file import load_config
from pangu_sigma.finetune.packages import format_splits, write_packaged_tasks

folder, tasks, config, data = sys.argv[1:]
for task, facts in write_packaged_tasks(tasks.split(), load_config(Path(config), [("data.path", data)]), Path(folder) / "tasks").items():
    print(format_splits(task, facts))
PYTHON
for seed in $seeds; do
  drawn=(--set seed="$seed" --set routing.seed=$((seed - 1)))
  timed "sigma_$seed" pangu-sigma train $config --output "$folder/sigma_$seed" "${sparse[@]}" "${drawn[@]}"
  timed "dense_$seed" pangu-sigma train $config --output "$folder/dense_$seed" "${dense[@]}" "${drawn[@]}"
done
: >"$folder/best.txt"
for task in $tasks; do
  for arm in $arms; do
    for rate in $rates; do tune "$task" "$arm" "${seeds%% *}" "$rate"; done
    rate=$(best_of "$task" "$arm")
    echo "$task $arm $rate" >>"$folder/best.txt"
    for seed in $seeds; do
      [ "$seed" = "${seeds%% *}" ] || tune "$task" "$arm" "$seed" "$rate"
    done
  done
done

python - "$folder" "$seeds" "$rates" <<'PYTHON'
import sys
from pathlib import Path

from pangu_sigma.finetune.tuned_arms import TunedArm, compare_tuned, write_tuned

folder, seeds, rates = Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3].split()
names = {"experts": "Σ experts", "slot": "Σ experts+slot", "all": "Σ all", "dense": "dense"}
best = {}
for line in (folder / "best.txt").read_text().splitlines():
    task, arm, rate = line.split()
    best.setdefault(task, {})[arm] = rate
for task, rate_of in best.items():
    arms = [
        TunedArm(
            name,
            {rate: folder / f"{task}_{arm}_{seeds[0]}_{rate}" for rate in rates},
            [folder / f"{'dense' if arm == 'dense' else 'sigma'}_{seed}" for seed in seeds],
            [folder / f"{task}_{arm}_{seed}_{rate_of[arm]}" for seed in seeds],
        )
        for arm, name in names.items()
    ]
    compared = compare_tuned(arms, folder / "tasks" / task / "test.jsonl", folder / "answers" / task)
    print(write_tuned(task, compared, folder), end="\n\n")
PYTHON
say_times
