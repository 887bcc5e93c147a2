#!/bin/sh
# Install SlimBrain into /opt/slimbrain with the locked dependencies, and try it.
#
#     install.sh cpu|cuda [TORCH_INDEX]
#
# TORCH_INDEX is the address of torch's wheels, where pip's own configuration doesn't lead to those
# that are wanted: the package index has CUDA builds only.
set -eu
cd "$(dirname "$0")/.."
torch=$1
index=${2:-}

pip() {
    python -m pip --disable-pip-version-check --no-cache-dir --python /opt/slimbrain/bin/python "$@"
}

version=$(sed -n 's/^torch==//p' requirements.lock)
wanted="torch==$version"
# Three signs leave out wheels such as 2.13.0+cpu, which pip takes for newer than 2.13.0.
[ "$torch$index" != cuda ] || wanted="torch===$version"

python -m venv --without-pip /opt/slimbrain
pip install --constraint requirements.lock ${index:+--extra-index-url "$index"} "$wanted" .

HOME=$(mktemp -d)
export HOME
cuda=$(/opt/slimbrain/bin/python -c 'import torch; print(torch.version.cuda or "")')
if [ "$torch" = cpu ] && [ -n "$cuda" ]; then
    echo "expected torch without CUDA, found it built for $cuda: set TORCH_INDEX to the address of" \
        "torch's wheels for CPUs" >&2
    exit 1
elif [ "$torch" = cuda ] && [ -z "$cuda" ]; then
    echo "expected torch with CUDA, found it without: set TORCH_INDEX to the address of torch's" \
        "wheels for your CUDA, or leave it empty for the package index" >&2
    exit 1
fi
# Weights and templates against their checksums, and the libraries by doing something with them.
/opt/slimbrain/bin/slimbrain-tools doctor
rm -rf "$HOME"
