#!/usr/bin/env bash
# Train on the NPUs of many machines. Start this once on every node, with the same arguments but for the node's rank.
#
#   bash run_scripts/msrun_cluster.sh CONFIG --nodes N --node-rank R --master-address HOST [--master-port P] [--output FOLDER] …
#
# or with NODES, NODE_RANK, MASTER_ADDRESS, MASTER_PORT in the environment; an option wins. On 64 nodes of 8 NPUs, with slurm:
#
#   export NODES=64 MASTER_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)
#   srun --nodes 64 --ntasks-per-node 1 bash -c \
#     'NODE_RANK=$SLURM_NODEID bash run_scripts/msrun_cluster.sh sigma_1t --max-restarts 3 --grace 60'
#
# CONFIG is a YAML file or the name of a shipped configuration. Paths are relative to the folder where you start it.
# --dry-run needs no cluster: it prints what each of the nodes would start. Before anything starts, the nodes compare configuration,
# vocabulary, routing tables, prepared data and versions, over the port after the master's. When a rank fails, or a node is lost, all
# ranks on all nodes are stopped, and with --max-restarts started again from the last checkpoint. FOLDER/logs has a log a rank.
#
# Each process gets an NPU and its share of the cores as threads (OMP_NUM_THREADS), near its NPU where msrun can tell. The chip
# is that of the configuration (parallel.chip); it decides how many NPUs a machine has, the
# 16-bit type, and HCCL's and CANN's settings (src/pangu_sigma/npu/host/environment.py). All options: pangu-sigma launch --help
set -euo pipefail
case " $* " in *" --help "* | *" -h "* | "  ") sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit ;; esac
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
source "$root/run_scripts/cann_env.sh"

options=(--device ascend)
if [ -n "${NODES:-}" ]; then options+=(--nodes "$NODES"); fi
if [ -n "${NODE_RANK:-}" ]; then options+=(--node-rank "$NODE_RANK"); fi
if [ -n "${MASTER_ADDRESS:-}" ]; then options+=(--master-address "$MASTER_ADDRESS"); fi
if [ -n "${MASTER_PORT:-}" ]; then options+=(--master-port "$MASTER_PORT"); fi
exec pangu-sigma launch "${options[@]}" "$@"
