#!/usr/bin/env bash
# Run on a Ray node that is about to be taken away (Kubernetes' preStop hook of a spot node): tells Ray, so that
# the training saves a checkpoint and leaves, and waits until it has. Arguments: seconds that are left.
set -euo pipefail
seconds=${1:-60}
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the pod is being deleted" \
  --deadline-remaining-seconds "$seconds"

training() {
  # the title that Ray gives a process that runs a rank of the training
  grep -slaE '^ray::(RayTrainWorker|.*TrainWorker)' /proc/[0-9]*/cmdline >/dev/null
}

until=$((SECONDS + seconds))
while training && ((SECONDS < until)); do
  sleep 1
done
