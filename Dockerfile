# Luthier from this checkout and a package index, for a CPU or a GPU of NVIDIA's:
#
#   docker build --target cpu -t luthier:cpu .
#   docker build --target cuda -t luthier:cuda .
#
# The images run as a user who owns /work alone; the cache (models, encoded rows) is the volume /cache.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS base
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 LUTHIER_CACHE=/cache
RUN useradd --create-home luthier && mkdir /cache /work && chown luthier:luthier /cache /work
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./

FROM base AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m pip install --constraint constraints.txt --index-url ${TORCH_INDEX} torch
COPY src src
RUN python -m pip install --constraint constraints.txt '.[serve,grammar]'
USER luthier
WORKDIR /work
VOLUME ["/cache", "/work"]
EXPOSE 8000 8200
ENTRYPOINT ["luthier"]
CMD ["--help"]

FROM base AS cuda
RUN python -m pip install --constraint constraints.txt torch
COPY src src
RUN python -m pip install --constraint constraints.txt '.[serve,grammar,quant]'
USER luthier
WORKDIR /work
VOLUME ["/cache", "/work"]
EXPOSE 8000 8200
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["luthier"]
CMD ["--help"]
