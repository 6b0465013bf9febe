#!/usr/bin/env bash
# Installs the package that build.sh made, and prints the line that lets CANN and MindSpore find the operators.
#   bash ascend_ops/install.sh [folder]      default: the folder `installed` beside this file
# Exit 2: there is no package.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

packages=("$here"/build_out/custom_opp_*.run)
if [ ! -f "${packages[0]}" ]; then
  echo "install.sh: no build_out/custom_opp_*.run beside it; run build.sh on a machine with CANN first" >&2
  exit 2
fi
mkdir -p "${1:-$here/installed}"
folder="$(cd "${1:-$here/installed}" && pwd)"
bash "${packages[0]}" --quiet --install-path="$folder"

vendor="$folder/vendors/pangu_sigma"
[ -d "$vendor/op_api/lib" ] || {
  echo "install.sh: the package did not install $vendor/op_api/lib" >&2
  exit 1
}
echo "export ASCEND_CUSTOM_OPP_PATH=$vendor:\${ASCEND_CUSTOM_OPP_PATH:-}"
echo "export LD_LIBRARY_PATH=$vendor/op_api/lib:\${LD_LIBRARY_PATH:-}"
