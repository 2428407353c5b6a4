# The first stage compiles the wheel; the second holds it and what it needs, and no compiler.
FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN LDFLAGS=-Wl,--strip-debug python3 -m pip wheel --no-cache-dir --wheel-dir /wheels .
# The last command makes Twisted remember its plugins: at a start the image may be read-only.
RUN python3 -m venv --without-pip /opt/kvstore \
    && python3 -m pip --python /opt/kvstore/bin/python3 install --no-cache-dir --no-index --find-links /wheels kvstore \
    && /opt/kvstore/bin/twistd --help-reactors > /dev/null

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 kvstore \
    && useradd --uid 10001 --gid kvstore --home-dir /data --no-create-home --shell /usr/sbin/nologin kvstore \
    && install --directory --owner kvstore --group kvstore --mode 750 /data
COPY --from=build /opt/kvstore /opt/kvstore
# A directory in the volume and not the volume: backups beside it share its segments, and a restore makes a new one.
ENV PATH=/opt/kvstore/bin:$PATH \
    KVSTORE_DATA_DIR=/data/kvstore \
    KVSTORE_TEXT=tcp:8080:interface=0.0.0.0 \
    KVSTORE_METRICS=tcp:9464:interface=0.0.0.0
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080 9464
STOPSIGNAL SIGTERM
# The start period is for opening much data without a checkpoint; the first good answer ends it.
HEALTHCHECK --interval=10s --timeout=10s --start-period=10m --retries=3 CMD ["kvstore", "health"]
ENTRYPOINT ["kvstore"]
CMD ["serve"]
