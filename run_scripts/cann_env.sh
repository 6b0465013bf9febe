# CANN's own paths, unless the shell has them. Sourced by the scripts for Ascend; what depends on the chip is in ascend_env.sh.
if [ -z "${ASCEND_HOME_PATH:-}" ]; then
  for cann in "${ASCEND_TOOLKIT_HOME:-/usr/local/Ascend/cann}" /usr/local/Ascend/ascend-toolkit; do # the second: before CANN 8.5
    if [ -f "$cann/set_env.sh" ]; then
      case $- in *u*) strict=true ;; *) strict=false ;; esac
      set +u # it reads variables that may not be set
      source "$cann/set_env.sh"
      PYTHONPATH=${PYTHONPATH%:} # an empty entry is the folder where you stand, whatever lies there
      if $strict; then set -u; fi
      break
    fi
  done
fi
