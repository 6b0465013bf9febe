#!/usr/bin/env bash
# Train on several processes of this machine, on the CPU. As many as the configuration's parallel section lays out.
#
#   bash run_scripts/msrun_cpu.sh CONFIG [--output FOLDER] [--set KEY=VALUE …] [--max-restarts N] [--dry-run] …
#   bash run_scripts/msrun_cpu.sh sigma_tiny -o runs/two --set parallel.data=2
#
# CONFIG is a YAML file or the name of a shipped configuration. Paths are relative to the folder where you start it.
# Prints what rank 0 prints; all ranks write to FOLDER/logs. Ctrl-C, or SIGTERM, lets them save. All options: pangu-sigma launch --help
set -euo pipefail
case " $* " in *" --help "* | *" -h "* | "  ") sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;; esac
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"

exec pangu-sigma launch "$@"
