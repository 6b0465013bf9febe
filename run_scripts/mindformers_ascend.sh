#!/usr/bin/env bash
# Train on one Ascend NPU with mindformers.Trainer: msrun around the run entry of the adapter, float16, one core group for the worker.
#   mindformers_ascend.sh [--config YAML] [--device N] [--port N] [--log-dir DIR] [--dry-run] [KEY=VALUE …]
# KEY=VALUE overrides keys of the YAML, such as train_dataset.data_loader.steps=100. --dry-run prints the command and starts nothing.
# Paths are relative to the folder where you start it, those in the YAML too. The data must be prepared there:
#   pangu-sigma prepare-data sigma_tiny
# This has not run on an Ascend device. What it starts is what runs on the CPU without the two overrides of device and dtype.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd) # not from install.sh, which a dry run does not need

config=$root/model_configs/mindformers/sigma_tiny.yaml
device=0 port=8118 logs=runs/mindformers_ascend_log dry_run=false overrides=()
while [ $# -gt 0 ]; do
  case $1 in
    --config|--device|--port|--log-dir)
      [ $# -ge 2 ] || { echo "error: $1 needs a value" >&2; exit 2; }
      case $1 in --config) config=$2 ;; --device) device=$2 ;; --port) port=$2 ;; --log-dir) logs=$2 ;; esac
      shift 2 ;;
    --dry-run) dry_run=true; shift ;;
    [!-]*=*) overrides+=(--set "$1"); shift ;;
    *) echo "error: $1 is no option of $0; it has --config --device --port --log-dir --dry-run and KEY=VALUE" >&2; exit 2 ;;
  esac
done
[[ $device =~ ^[0-9]+$ ]] || { echo "error: --device $device is not the number of an NPU; npu-smi info lists them" >&2; exit 2; }
[ -f "$config" ] || { echo "error: --config $config is no file; relative paths begin in $PWD" >&2; exit 2; }

command=(
  msrun --worker_num=1 --local_worker_num=1 --master_port="$port" --log_dir="$logs" --join=True --bind_core=True
  python -P -m pangu_sigma.mindformers_adapter "$config"
  --set context.device_target=Ascend --set model.model_config.compute_dtype=float16 "${overrides[@]}"
)
if $dry_run; then
  echo "ASCEND_RT_VISIBLE_DEVICES=$device ${command[*]@Q}"
  exit
fi
source "$root/run_scripts/install.sh"
source "$root/run_scripts/cann_env.sh"
ASCEND_RT_VISIBLE_DEVICES=$device exec "${command[@]}"
