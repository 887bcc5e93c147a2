# SlimBrain for docker and podman; `make image` builds it.
#
#   BASE         Debian with Python 3.11 or newer; give a digest to pin it
#   TORCH        cpu, or cuda for NVIDIA GPUs, whose driver is all that the host must have
#   TORCH_INDEX  address of torch's wheels, where pip's configuration doesn't say
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG TORCH=cpu
ARG TORCH_INDEX=
COPY . /src
RUN sh /src/containers/install.sh "${TORCH}" "${TORCH_INDEX}"

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="SlimBrain" \
      org.opencontainers.image.description="Embeddings of fMRI runs from fMRIPrep derivatives" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.authors="The SlimBrain developers"
# The base comes without compiled standard library: each start would compile it in memory.
RUN python -m pip uninstall --yes pip setuptools wheel \
 && python -m compileall -q -j 0 "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=build /opt/slimbrain /opt/slimbrain
ENV PATH=/opt/slimbrain/bin:$PATH \
    SLIMBRAIN_IMAGE=slimbrain:${VERSION}
ENTRYPOINT ["slimbrain"]
