#!/usr/bin/env bash
# List the models: models.sh [URL]; the key is read from TOOLWIRE_API_KEY
set -euo pipefail
curl -sS --fail-with-body "${1:-http://127.0.0.1:8000}/v1/models" -H "Authorization: Bearer ${TOOLWIRE_API_KEY:-none}"
