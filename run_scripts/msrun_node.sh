#!/usr/bin/env bash
# Train on the NPUs of this machine: 8 on an Ascend 910 server. As many as the configuration's parallel section lays out.
#
#   bash run_scripts/msrun_node.sh CONFIG [--run FOLDER] [--processes N] [--set KEY=VALUE …] [--restarts N] [--dry-run] …
#   bash run_scripts/msrun_node.sh sigma_small --processes 8 --set parallel.tensor=8 --restarts 3
#
# CONFIG is a YAML file or the name of a shipped configuration. Paths are relative to the folder where you start it.
# Each process gets an NPU and its share of the cores: those near its NPU where msrun can tell, else the next ones in order. HCCL's and
# CANN's settings are in ascend_env.sh. All options: pangu-sigma launch --help
set -euo pipefail
case " $* " in *" --help "* | *" -h "* | "  ") sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;; esac
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
source "$root/run_scripts/ascend_env.sh"

exec pangu-sigma launch --ascend "$@"
