# What CANN, HCCL and MindSpore need to know on Ascend, by chip, for a shell of your own. To be sourced, from any folder:
#
#   source run_scripts/ascend_env.sh [910a|910b|910b1…4|910_93]
#
# Without an argument PANGU_SIGMA_CHIP names the chip; else the PCI devices do; else it is 910A. Which one it is, and by whom,
# is said on standard error. Each line gives way to a value that is set already. The settings and their reasons are in
# src/pangu_sigma/npu/host/environment.py, and `pangu-sigma launch --device ascend` gives the same ones to its ranks.
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/run_scripts/cann_env.sh"

python=$root/.venv/bin/python
if [ ! -x "$python" ]; then python=python; fi
if settings=$("$python" -P -m pangu_sigma.npu.host.environment "$@"); then
  eval "$settings"
else
  false # what is wrong has been said
fi
