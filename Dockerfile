# One image for the embedding server and the bot; which of them a container is, its command says.
FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN python -m venv /venv \
 && /venv/bin/pip install --no-cache-dir -c constraints.txt '.[cpu,bot]'

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 mapseek && install -d -o mapseek /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 MAPSEEK_LOG_FORMAT=json
USER mapseek
# Archive and queue, where they are files; a volume keeps them.
WORKDIR /data
ENTRYPOINT ["mapseek"]
CMD ["serve"]
