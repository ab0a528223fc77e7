#!/usr/bin/env bash
# Secrets come as files: for every NAME_FILE whose value lies in /run/secrets, NAME gets what the file holds.
# Nothing secret then stands in the container's configuration, where `docker inspect` would show it.
set -euo pipefail
folder=${AGIT_SECRETS_FOLDER:-/run/secrets}
while IFS= read -r name; do
  path=${!name}
  [[ $path == "$folder"/* ]] || continue
  if [[ ! -r $path ]]; then
    echo "$name: the secret $path is missing or may not be read by user $(id -u)" >&2
    exit 2
  fi
  export "${name%_FILE}=$(<"$path")"
done < <(compgen -e | grep '_FILE$' || true)
exec "$@"
