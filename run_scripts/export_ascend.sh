#!/usr/bin/env bash
# A run as a MindIR folder for the Ascend 910 family: export_ascend.sh RUN OUTPUT [float32|float16|int8]. Paths are relative to where
# you stand. Weights are float16 at rest unless told otherwise. With CANN's environment (ascend_env.sh) the real one compiles, without it
# stand-ins do.
#
# The folder is that of `pangu-sigma export`, README included; in its program put "Ascend" in place of "CPU". To serve it:
#   MindSpore        the program of the README; generate/graph/exported.py runs the graph on the CPU alone
#   MindSpore Lite   converter_lite --fmk=MINDIR --modelFile=model.mindir --optimize=ascend_oriented; give it the shapes that you will use
#                    (--configFile with ge.inputShape and ge.dynamicDims), because its models have fixed ones
#   vLLM-MindSpore   does not run it: it serves networks of its own list, by their Hugging Face weights
#
# Checked without a device: MindSpore's front end compiles the graph for Ascend, with open and with fixed shapes, and writes it.
# Needs a device, and is not known: that CANN has a kernel for each operator with open shapes (CumSum, GatherD, ScatterNdUpdate and
# TensorScatterUpdate of int32 before all), its numbers, its speed. 910A computes matrix products in float16 whatever the weights are.
# The whole model must fit one device: there is no MindIR for each tensor rank. Of a larger model, extract a domain first
# (`pangu-sigma extract`); one of the 1T model has 38 B parameters, 76 GB in float16 and 38 in int8, and does not fit a 910A either.
source "$(dirname -- "${BASH_SOURCE[0]}")/install.sh"
source "$root/run_scripts/ascend_env.sh" "" # our arguments are not its

python -P -m pangu_sigma.npu.export_ascend "$@"
