# Builds bundles and the plugin library; needs no GPU. From the root of the repository:
#     docker build -f src/fastwan/serve/deploy/builder.Dockerfile -t fastwan-export:builder .
#     docker run --rm -v "$PWD/out:/out" fastwan-export:builder \
#         build-engine --checkpoint OWNER/NAME -o /out/bundle
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The distribution's own packages: their versions are those of the pinned base's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake git ninja-build python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/fastwan
ENV PATH=/opt/fastwan/bin:$PATH
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
COPY export export
COPY engines engines
COPY runtime runtime
COPY plugins plugins
RUN pip install --no-cache-dir -c constraints.txt -e '.[build]' \
    && fastwan-export build-plugin
VOLUME ["/out"]
ENTRYPOINT ["fastwan-export"]
CMD ["--help"]
