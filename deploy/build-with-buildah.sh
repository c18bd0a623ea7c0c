#!/usr/bin/env bash
# Builds the image where no Docker engine is at hand, with buildah and debootstrap from Debian's packages
# (apt-get install buildah debootstrap), as root:
#
#   deploy/build-with-buildah.sh [IMAGE [options of buildah build…]]
#
# BASE_IMAGE        an image to build on; left out, a small Debian with python3 is made by debootstrap
# TORCH_INDEX_URL   see Dockerfile
# STORE             where images are kept (default build/images); vfs keeps a whole copy a layer: some 10 GB
#
# What the machine's pip needs goes in by options, for example
#   deploy/build-with-buildah.sh toolwire:local --secret id=pip,src=/etc/pip.conf --volume /srv/wheels:/srv/wheels:ro
set -euo pipefail
cd "$(dirname "$0")/.."

image=${1:-toolwire:local}
shift || true
store=$(realpath -m "${STORE:-build/images}")
suite=bookworm
mkdir -p "$store"

buildah() { command buildah --storage-driver vfs --root "$store/root" --runroot "$store/run" "$@"; }

make_base() { # NAME: Debian with python3, and nothing that an image would not need
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

# --format docker: the OCI format has no place for HEALTHCHECK
buildah build --isolation chroot --format docker --tag "$image" \
  --build-arg BASE_IMAGE="$BASE_IMAGE" --build-arg TORCH_INDEX_URL="${TORCH_INDEX_URL:-}" "$@" .
