# One image for all processes: the API by default, the others by their command (see docker-compose.yml).
#
#   docker run -e DATABASE_URL=postgresql://... -e RABBITMQ_URL=amqp://... order-service python -m order_service migrate
#   docker run -e DATABASE_URL=postgresql://... -e ORDER_AUTH=... -p 5003:5003 order-service
#
# ORDER_AUTH is jwt, with ORDER_JWT_ISSUER and ORDER_JWT_JWKS_URL, or none: the API listens on every address, and does
# not start without this decision.
#
# It also runs with --read-only --tmpfs /tmp.
FROM python:3.13-slim

# The container's own loopback address could not be reached from outside.
ENV HOST=0.0.0.0
# For Prometheus and the health check; not to be published to the outside.
ENV ORDER_OPS_PORT=9100
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /app

# Dependencies first, so that a change of the code does not reinstall them.
COPY requirements.txt ./
RUN pip install --require-hashes --requirement requirements.txt

# /data holds the sandbox's databases, /definitions the broker's users in docker-compose.yml; a volume mounted there
# inherits its owner. The code belongs to root.
RUN useradd --uid 10001 --home-dir /nonexistent --no-create-home order \
    && mkdir /data /definitions \
    && chown order /data /definitions
COPY . .
RUN python -m compileall -q .

# By number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 10001
EXPOSE 5003
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD ["python", "deploy/healthcheck.py"]
CMD ["gunicorn", "--config", "deploy/gunicorn.conf.py", "api:create_app()"]
