#!/usr/bin/env bash
# The same call as server-sent events: stream.sh [URL [MODEL]]
set -euo pipefail
curl -sS --fail-with-body -N "${1:-http://127.0.0.1:8000}/v1/chat/completions" \
  -H "Authorization: Bearer ${TOOLWIRE_API_KEY:-none}" -H 'Content-Type: application/json' -d @- <<JSON
{
  "model": "${2:-toolwire-demo}", "stream": true, "stream_options": {"include_usage": true},
  "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
  "tools": [{"type": "function", "function": {
    "name": "get_weather", "description": "Get the current weather for a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}],
  "tool_choice": "required"
}
JSON
