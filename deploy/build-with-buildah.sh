#!/usr/bin/env bash
# Build the image without a Docker engine, as root, with buildah and debootstrap from Debian's packages
# (apt-get install buildah debootstrap):
#
#   deploy/build-with-buildah.sh [IMAGE [options of buildah build…]]
#
# BASE_IMAGE        base image; by default a small Debian with python3, made by debootstrap
# TORCH_INDEX_URL   see Dockerfile
# STORE             folder of the images (default build/images); vfs keeps a full copy of each layer: about 10 GB
#
# Files that this machine's pip needs are passed as options of buildah, for example
#   deploy/build-with-buildah.sh toolwire:local --secret id=pip,src=/etc/pip.conf --volume /srv/wheels:/srv/wheels:ro
set -euo pipefail
cd "$(dirname "$0")/.."

image=${1:-toolwire:local}
shift || true
store=$(realpath -m "${STORE:-build/images}")
suite=bookworm
mkdir -p "$store"

buildah() { command buildah --storage-driver vfs --root "$store/root" --runroot "$store/run" "$@"; }

make_base() { # NAME: a minimal Debian with python3
  local tree="$store/debian"
  [ -x "$tree/usr/bin/python3" ] || debootstrap --variant=minbase \
    --include=python3,python3-venv,ca-certificates "$suite" "$tree"
  rm -rf "$tree"/var/cache/apt/archives/*.deb "$tree"/var/lib/apt/lists/*
  local container
  container=$(buildah from scratch)
  buildah add -q "$container" "$tree" /
  buildah config --cmd /bin/sh --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  buildah commit -q --rm --format docker "$container" "$1"
}

if [ -z "${BASE_IMAGE:-}" ]; then
  BASE_IMAGE=localhost/debian-python:$suite
  buildah inspect --type image "$BASE_IMAGE" >/dev/null 2>&1 || make_base "$BASE_IMAGE"
fi

# --format docker: the OCI format has no HEALTHCHECK
buildah build --isolation chroot --format docker --tag "$image" \
  --build-arg BASE_IMAGE="$BASE_IMAGE" --build-arg TORCH_INDEX_URL="${TORCH_INDEX_URL:-}" "$@" .
