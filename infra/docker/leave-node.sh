#!/usr/bin/env bash
# Run on a Ray node that is about to be taken away (Kubernetes' preStop hook of a spot node): tells Ray, so that
# the training saves a checkpoint and leaves, and waits until it has. Argument: the seconds that are left, of which
# most providers give 25 in all.
set -euo pipefail
seconds=${1:-20}
until=$((SECONDS + seconds))

# a head that is gone too, as when the whole cluster is deleted, must not hold the pod back
head_listens() {
  local address=${RAY_ADDRESS:-}
  [[ -z $address ]] || timeout 3 bash -c "exec 3<>/dev/tcp/${address%:*}/${address##*:}" 2>/dev/null
}

# the node's id as its raylet was given it: without it `ray drain-node` would join the cluster to ask, which takes seconds
node_id() {
  cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | sed -n 's/^--node_id=\([0-9a-f]\{56\}\)$/\1/p' | head -n 1
}

node=$(node_id || true)
if ! head_listens || ! timeout "$seconds" ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION \
  --reason-message "its pod is being deleted" --deadline-remaining-seconds "$seconds" ${node:+--node-id "$node"}; then
  echo "Ray's head does not answer or refuses; the node leaves without a word" >&2
  exit 0
fi

training() {
  # the title that Ray gives the processes of a training
  grep -slaE '^ray::.*TrainWorker' /proc/[0-9]*/cmdline >/dev/null
}

while training && ((SECONDS < until)); do
  sleep 0.5
done
