# Two images, each with nothing installed but what it runs: --target server and --target bot. Both run
# as nobody in particular, need no capability, and write nowhere but to /data and /tmp.
FROM python:3.12-slim AS source
WORKDIR /src
COPY . .
RUN python -m venv /venv

FROM source AS build-bot
RUN /venv/bin/pip install --no-cache-dir -c constraints.txt '.[bot]' && /venv/bin/pip uninstall -y pip

FROM source AS build-server
RUN /venv/bin/pip install --no-cache-dir -c constraints.txt '.[cpu]' && /venv/bin/pip uninstall -y pip

FROM python:3.12-slim AS base
RUN useradd --system --uid 10001 --shell /usr/sbin/nologin mapseek && install -d -o mapseek -m 700 /data
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MAPSEEK_LOG_FORMAT=json
# Archive and queue, where they are files; a volume keeps them.
WORKDIR /data
ENTRYPOINT ["mapseek"]

FROM base AS bot
COPY --from=build-bot /venv /venv
USER mapseek
CMD ["bot"]

# The last one is what `docker build .` makes.
FROM base AS server
COPY --from=build-server /venv /venv
USER mapseek
CMD ["serve"]
# The health service of gRPC, over TLS and with a client certificate where the settings say so. Who sets
# MAPSEEK_LISTEN to another port sets MAPSEEK_SERVER as well, which is asked here.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["mapseek", "health"]
