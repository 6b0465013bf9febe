#!/usr/bin/env bash
# Builds build_out/custom_opp_<os>_<arch>.run with CANN, for the chips named (default: all three).
#   bash ascend_ops/build.sh [ascend910|ascend910b|ascend910_93 ...]
# CANN is found through ASCEND_HOME_PATH, which its set_env.sh sets. Exit 2: something that the build needs is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

missing() {
  echo "build.sh: $1" >&2
  exit 2
}

for chip in "$@"; do
  case "$chip" in
    ascend910 | ascend910b | ascend910_93) ;;
    *) missing "unknown chip '$chip'; the operators are written for ascend910, ascend910b and ascend910_93" ;;
  esac
done

cann="${ASCEND_HOME_PATH:-}"
[ -n "$cann" ] || missing "ASCEND_HOME_PATH is not set: install the CANN toolkit and source its set_env.sh"
[ -d "$cann" ] || missing "ASCEND_HOME_PATH=$cann is not a directory"
[ -d "$cann/compiler/tikcpp/ascendc_kernel_cmake" ] ||
  missing "$cann has no compiler/tikcpp/ascendc_kernel_cmake: this is not a CANN toolkit, or one too old for find_package(ASC)"
command -v cmake > /dev/null || missing "cmake is not on PATH; version 3.19 or newer is needed"

chips="$(IFS=';'; echo "${*:-ascend910;ascend910b;ascend910_93}")"
cmake -S . -B build_out --preset=default "-DASCEND_CANN_PACKAGE_PATH=$cann" "-DASCEND_COMPUTE_UNIT=$chips"
cmake --build build_out --target binary package -j"$(nproc)"

compgen -G "build_out/custom_opp_*.run" > /dev/null || {
  echo "build.sh: the build ended without build_out/custom_opp_*.run" >&2
  exit 1
}
ls build_out/custom_opp_*.run
