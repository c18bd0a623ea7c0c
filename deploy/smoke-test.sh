#!/usr/bin/env bash
# Test a container of an image that deploy/build-with-buildah.sh built: it does not run as root, has no tools to build or
# install with, becomes healthy, makes a tool call, and on SIGTERM finishes a running stream before it exits.
#
#   deploy/smoke-test.sh [IMAGE]          STORE as for build-with-buildah.sh, PORT of this machine (default 8765)
set -euo pipefail
cd "$(dirname "$0")/.."

image=${1:-toolwire:local}
port=${PORT:-8765}
store=$(realpath -m "${STORE:-build/images}")
url=http://127.0.0.1:$port
work=$(mktemp -d)

buildah() { command buildah --storage-driver vfs --root "$store/root" --runroot "$store/run" "$@"; }
inside() { buildah run --isolation chroot --env TOOLWIRE_PORT="$port" "$container" -- "$@"; }
pass() { echo "ok    $*"; }
fail() { echo "FAIL  $*"; sed 's/^/      /' "$work/log" 2>/dev/null | tail -n 40; exit 1; }

descendant() { # PID WORD: the deepest descendant of PID whose command line contains WORD
  local child
  for child in $(pgrep -P "$1"); do
    descendant "$child" "$2" && return
    if tr '\0' ' ' <"/proc/$child/cmdline" | grep -q -- "$2"; then echo "$child" && return; fi
  done
  return 1
}

container=$(buildah from "$image")
run_pid=
clean_up() {
  [ -z "$run_pid" ] || ! kill -0 "$run_pid" 2>/dev/null || kill -- "$(descendant "$run_pid" toolwire || echo "$run_pid")"
  buildah rm "$container" >/dev/null
  rm -rf "$work"
}
trap clean_up EXIT

[ "$(inside id -u)" = 10001 ] || fail "the user is $(inside id -u)"
pass "runs as user 10001"
for tool in gcc cc g++ make git curl wget; do
  if inside sh -c "command -v $tool" >/dev/null 2>&1; then fail "$tool is in the image"; fi
done
if inside /opt/toolwire/bin/python -m pip --version >/dev/null 2>&1; then fail "pip is in the environment"; fi
if inside sh -c 'echo x > /opt/toolwire/x' 2>/dev/null; then fail "the user can change the program"; fi
pass "has no build tools, and the user cannot change the program"
if inside /opt/toolwire/bin/python -c 'import triton' 2>/dev/null; then
  inside sh -c 'ls /opt/toolwire/share/toolwire/triton/cuda_utils-*.so' >/dev/null || fail "Triton cannot launch kernels"
  pass "contains Triton's launcher"
fi

mapfile -t command < <(buildah inspect --type container "$container" | python3 -c "
import json, sys
config = json.load(sys.stdin)['Docker']['config']
print(*config['Entrypoint'], *config['Cmd'], sep='\n')")
inside "${command[@]}" >"$work/log" 2>&1 &
run_pid=$!
for _ in $(seq 240); do
  kill -0 "$run_pid" 2>/dev/null || fail "the server ended"
  [ "$(curl -s -o "$work/ready" -w '%{http_code}' "$url/ready" || true)" = 200 ] && break
  sleep 0.5
done
grep -q '"ready"' "$work/ready" || fail "not ready after two minutes"
pass "serves: ${command[*]}"
server=$(descendant "$run_pid" 'toolwire serve') || fail "no server process"
[ "$(stat -c %u "/proc/$server")" = 10001 ] || fail "the server runs as $(stat -c %u "/proc/$server")"
pass "the server process belongs to user 10001"

mapfile -t health < <(buildah inspect --type container "$container" | python3 -c "
import json, sys
kind, *words = json.load(sys.stdin)['Docker']['config']['Healthcheck']['Test']
assert kind == 'CMD', kind
print(*words, sep='\n')")
inside "${health[@]}" || fail "the healthcheck fails: ${health[*]}"
pass "the healthcheck is green"

clients/curl/tool_call.sh "$url" >"$work/call" || fail "no tool call: $(cat "$work/call")"
python3 - "$work/call" <<'PYTHON' || fail "not the expected call: $(cat "$work/call")"
import json, sys
choice = json.load(open(sys.argv[1]))["choices"][0]
assert choice["finish_reason"] == "tool_calls"
call = choice["message"]["tool_calls"][0]["function"]
assert call["name"] == "get_weather" and isinstance(json.loads(call["arguments"])["city"], str)
PYTHON
pass "makes a tool call"

curl -sS -N "$url/v1/chat/completions" -H 'Content-Type: application/json' -d '{
  "model": "toolwire-demo", "stream": true, "max_tokens": 300, "ignore_eos": true,
  "messages": [{"role": "user", "content": "Hello!"}]}' >"$work/stream" &
reader=$!
for _ in $(seq 100); do [ "$(grep -c '^data:' "$work/stream")" -gt 5 ] && break; sleep 0.02; done
kill -TERM "$server"
before=$(grep -c '^data:' "$work/stream")
wait "$reader" || fail "the stream was cut off"
after=$(grep -c '^data:' "$work/stream")
tail -n 2 "$work/stream" | grep -q 'DONE' || fail "the stream did not end: $(tail -n 3 "$work/stream")"
grep -q '"finish_reason":"length"' "$work/stream" || fail "the stream was ended early: $(tail -n 3 "$work/stream")"
pass "SIGTERM lets a running stream finish ($before events before it, $after in all)"
code=0
wait "$run_pid" || code=$?
[ "$code" = 0 ] || fail "the server ended with $code"
pass "and then the server ends with 0"
if inside "${health[@]}" 2>/dev/null; then fail "the healthcheck is green without a server"; fi
pass "without a server the healthcheck is red"
