# An image of this project on the vendor's image of CANN 9.0.0 with Python 3.11. It was built nowhere yet: report what does not fit.
#
#   docker build -f run_scripts/ascend.Dockerfile --build-arg CHIP=910b -t pangu-sigma:910b .     # in the repository
#
# CHIP, by the names of the vendor's images: 910 for 910A, 910b for 910B, a3 for 910_93. The driver is the host's: it, its tools and the
# devices are passed on when a container starts (docs/how_to/cluster.md has the line).
ARG CHIP=910b
FROM ascendai/cann:9.0.0-${CHIP}-ubuntu22.04-py3.11
ARG CHIP=910b
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# g++ compiles the kernels of the host, cmake our operators; msrun binds ranks with taskset (util-linux), lspci and lscpu; doctor asks ip
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ cmake make util-linux pciutils iproute2 \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/pangu-sigma
COPY pyproject.toml requirements.txt README.md LICENSE ./
COPY ascend_ops ascend_ops
COPY model_configs model_configs
COPY run_scripts run_scripts
COPY src src
RUN PYTHON=python3.11 source run_scripts/install.sh
RUN source run_scripts/cann_env.sh \
 && unit=ascend${CHIP/a3/910_93} \
 && bash ascend_ops/build.sh "$unit" \
 && bash ascend_ops/install.sh /opt/operators

# the two lines that install.sh printed
ENV PATH=/opt/pangu-sigma/.venv/bin:$PATH \
    ASCEND_CUSTOM_OPP_PATH=/opt/operators/vendors/pangu_sigma \
    LD_LIBRARY_PATH=/opt/operators/vendors/pangu_sigma/op_api/lib:$LD_LIBRARY_PATH
