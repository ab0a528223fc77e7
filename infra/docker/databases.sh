#!/usr/bin/env bash
# Run once by the Postgres image on an empty volume: a database and a role of its own for each server.
set -euo pipefail
secrets=${AGIT_SECRETS_FOLDER:-/run/secrets}
for name in prefect mlflow; do
  psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=postgres \
    --set=name="$name" --set=password="$(<"$secrets/${name}_db_password")" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
# Prefect's search index
psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname=prefect \
  --command='CREATE EXTENSION IF NOT EXISTS pg_trgm'
