#!/usr/bin/env bash
# Random passwords for compose.yaml, in infra/docker/secrets/ (git-ignored); existing ones are kept.
# The folder is closed to other users; the files in it are not, because containers read them as another user.
set -euo pipefail
folder=${1:-$(dirname "$0")/secrets}
umask 077
mkdir -p "$folder"
chmod 700 "$folder"
for name in postgres_password prefect_db_password mlflow_db_password s3_access_key s3_secret_key ray_token; do
  file=$folder/$name
  if [[ ! -s $file ]]; then
    # hexadecimal: needs no quoting in a URL, a header or SQL
    printf %s "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" > "$file.part"
    chmod 644 "$file.part"
    mv "$file.part" "$file"
    echo "made $name"
  fi
done
