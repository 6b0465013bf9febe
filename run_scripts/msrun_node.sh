#!/usr/bin/env bash
# Train on the NPUs of this machine: up to 8 on a server of 910A or 910B, 16 on one of 910_93. As many as the configuration's parallel
# section lays out.
#
#   bash run_scripts/msrun_node.sh CONFIG [--output FOLDER] [--set KEY=VALUE …] [--max-restarts N] [--dry-run] …
#   bash run_scripts/msrun_node.sh sigma_small --set parallel.tensor=8 --max-restarts 3
#
# CONFIG is a YAML file or the name of a shipped configuration. Paths are relative to the folder where you start it.
# Each process gets an NPU and its share of the cores as threads (OMP_NUM_THREADS), near its NPU where msrun can tell. The chip
# is that of the configuration (parallel.chip); it decides how many NPUs a machine has, the
# 16-bit type, and HCCL's and CANN's settings (src/pangu_sigma/npu/host/environment.py). All options: pangu-sigma launch --help
set -euo pipefail
case " $* " in *" --help "* | *" -h "* | "  ") sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;; esac
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
source "$root/run_scripts/cann_env.sh"

exec pangu-sigma launch --device ascend "$@"
