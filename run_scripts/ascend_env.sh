# What CANN, HCCL and MindSpore need to know on Ascend 910A. Sourced by msrun_node.sh and msrun_cluster.sh. Each line gives way to a
# value that is set already. Taken from CANN's documentation; none of it has been measured on a device.

# CANN's own paths, unless the shell has them.
cann=${ASCEND_TOOLKIT_HOME:-/usr/local/Ascend/ascend-toolkit}
if [ -z "${ASCEND_HOME_PATH:-}" ] && [ -f "$cann/set_env.sh" ]; then
  set +u # it reads variables that may not be set
  source "$cann/set_env.sh"
  set -u
fi

# Seconds that a rank waits for the others when a group is first used. They come there after compiling, which takes minutes and not
# equally long on all nodes; HCCL's own limit of 120 s would end a run that is only slow to start.
export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-1800}

# Seconds that a rank waits in a collective for one that is late: evaluating, or writing its part of a checkpoint. A rank that hangs
# ends the run after this; one that dies is noticed by the launcher at once. A multiple of 68, to which HCCL rounds.
export HCCL_EXEC_TIMEOUT=${HCCL_EXEC_TIMEOUT:-1836}

# 910A has no infinity and no NaN in its arithmetic: an overflow becomes the largest number and raises a flag. MindSpore must look at
# the flag; INFNAN_MODE is for 910B and later.
export MS_ASCEND_CHECK_OVERFLOW_MODE=${MS_ASCEND_CHECK_OVERFLOW_MODE:-SATURATION_MODE}

# CANN writes a log a process, to ~/ascend/log unless told otherwise: on a cluster that is one folder for hundreds of processes.
export ASCEND_PROCESS_LOG_PATH=${ASCEND_PROCESS_LOG_PATH:-/tmp/ascend_log_$(id -u)}

# Not set here, because it depends on the machines: HCCL_SOCKET_IFNAME, such as "=eth0", the network by which nodes find each other.
# Without it HCCL takes the first by name, which need not be the same one on all nodes. HCCL_DETERMINISTIC is for 910B and later.
