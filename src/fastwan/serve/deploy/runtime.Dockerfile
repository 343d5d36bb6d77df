# Serves bundles; builds none. From the root of the repository:
#     docker build -f src/fastwan/serve/deploy/runtime.Dockerfile -t fastwan-export:runtime .
# The GPU's driver comes from the host, by the NVIDIA Container Toolkit.
FROM python:3.12.12-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
COPY export export
COPY engines engines
COPY runtime runtime
COPY plugins plugins
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12.12-slim-bookworm
COPY --from=wheel /wheels /wheels
COPY constraints.txt /wheels/constraints.txt
RUN wheel=$(echo /wheels/*.whl) \
    && pip install --no-cache-dir -c /wheels/constraints.txt "${wheel}[gpu,serve]" \
    && useradd --uid 10001 --create-home fastwan \
    && install -d -o fastwan -g fastwan /videos
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /home/fastwan
VOLUME ["/videos"]
EXPOSE 8000
# SIGTERM, docker's own, drains: give it longer than --drain-seconds with --stop-timeout.
ENTRYPOINT ["fastwan-export"]
CMD ["serve", "/bundle", "--host", "0.0.0.0", "--folder", "/videos/served"]
