#!/bin/sh
# Kubernetes runs this before it ends a pod. A run's driver in this pod is asked to save and to end; a pod with a run's actors
# waits until they have ended, as the driver needs them to save. terminationGracePeriodSeconds ends the wait.
driver=${1:-'^[^ ]*python[^ ]* [^ ]*/cohort (train|resume) '}
actors=${2:-'^ray::(RolloutActor|RewardActor|LearnerActor)'}
pgrep -f "$driver" | xargs --no-run-if-empty kill -TERM
while pgrep -f "$driver" >/dev/null || pgrep -f "$actors" >/dev/null; do
    sleep 1
done
