# One image for all processes: the API by default, the others by their command (see docker-compose.yml).
FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /app

# Dependencies first, so that a change of the code does not reinstall them.
COPY requirements.txt ./
RUN pip install --require-hashes --requirement requirements.txt

# /data holds the sandbox's databases; a volume mounted there inherits its owner. The code belongs to root.
RUN useradd --uid 10001 --home-dir /nonexistent --no-create-home order \
    && mkdir /data \
    && chown order /data
COPY . .
RUN python -m compileall -q .

USER order
EXPOSE 5003
CMD ["gunicorn", "--config", "deploy/gunicorn.conf.py", "api:create_app()"]
