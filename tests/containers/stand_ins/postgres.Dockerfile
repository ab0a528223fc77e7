# In the place of postgres:17 where no registry can be reached: Debian's PostgreSQL with the same contract as far as
# compose.yaml relies on it (POSTGRES_PASSWORD_FILE, POSTGRES_INITDB_ARGS, the scripts run once on an empty volume).
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends postgresql-15 && rm -rf /var/lib/apt/lists/*
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data/pg
COPY --chmod=0755 postgres.sh /usr/local/bin/docker-entrypoint.sh
ENTRYPOINT ["docker-entrypoint.sh"]
