#!/usr/bin/env bash
# The second request of a tool loop: a call and its result in, the answer out: tool_result.sh [URL [MODEL]]
set -euo pipefail
curl -sS --fail-with-body "${1:-http://127.0.0.1:8000}/v1/chat/completions" \
  -H "Authorization: Bearer ${TOOLWIRE_API_KEY:-none}" -H 'Content-Type: application/json' -d @- <<JSON
{
  "model": "${2:-toolwire-demo}",
  "messages": [
    {"role": "user", "content": "What is the weather in Paris?"},
    {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function",
      "function": {"name": "get_weather", "arguments": "{\"city\": \"Paris\"}"}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "{\"weather\": \"sunny\", \"temperature\": 21}"}],
  "tools": [{"type": "function", "function": {
    "name": "get_weather", "description": "Get the current weather for a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
}
JSON
