#!/usr/bin/env bash
# The container's command: what may wait goes to the background, then the worker takes this process's place, so that a
# SIGTERM to the container reaches it. Arguments go to the worker.
set -euo pipefail
cd /

# Forked twice: whoever is process 1 collects it, not the worker.
in_background() {
  ({ "$@" >&2 || echo "$1 failed; the worker goes on without it." >&2; } &)
}

if [[ -n "${PUBLIC_KEY:-}" ]]; then
  in_background start-sshd
fi
in_background comfy-manager-set-mode "${COMFYUI_MANAGER_MODE:-offline}"

exec "${WORKER_PYTHON:-/opt/worker/bin/python}" -u /handler.py "$@"
