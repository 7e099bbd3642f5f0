# The service in a container: any user id, a read-only root file system, a writable /tmp.
#
# The size of this image is the size of torch. On x86-64 the package index's torch brings several GB of GPU packages
# that are never used here. Tell pip where the CPU builds are (PyTorch's installation page names the index):
#
#     PIP_EXTRA_INDEX_URL=... make image          (or: docker compose build)

# The Python that the tests run on.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
WORKDIR /build
COPY constraints.txt ./
# By itself, so that a change of our code does not fetch it again. NumPy, because torch looks for it and migrations may.
RUN /opt/venv/bin/pip install --constraint constraints.txt torch numpy
COPY pyproject.toml README.md LICENSE ./
COPY migrate_ckpt migrate_ckpt
COPY app app
RUN /opt/venv/bin/pip install --constraint constraints.txt '.[jobs,telemetry]'

FROM python:${PYTHON_VERSION}-slim
COPY --from=build /opt/venv /opt/venv
WORKDIR /srv
# The examples: mount your own folder over them.
COPY migrations migrations
# HOME is for libraries that ask for one: a user id that no passwd file knows has none.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HOST=0.0.0.0 \
    PORT=8000 \
    MIGRATE_CKPT_MIGRATIONS_FOLDER=/srv/migrations \
    MIGRATE_CKPT_SCRATCH_FOLDER=/tmp \
    MIGRATE_CKPT_DATA_FOLDER=/data
# Jobs and their results: mount a volume here, which is given the rights of this folder.
RUN install -d -m 0700 -o 65532 -g 65532 /data
VOLUME /data
USER 65532:65532
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/livez', timeout=4)"]
ENTRYPOINT ["python", "-m", "app"]
CMD ["serve"]
