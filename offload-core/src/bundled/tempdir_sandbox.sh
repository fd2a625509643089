#!/bin/sh
# Sandboxes made of temporary directories: each is a copy of a directory, and commands run in that copy.
#
# They share this machine's processes, network and installed software; only the files are apart. That is enough for
# suites that write into their source tree, and to see how the provider `default` works.
#
#   prepare [DIRECTORY]          prints the image id: the absolute path of DIRECTORY (default: the current one)
#   create [IMAGE]               copies the image; prints the sandbox id: the path of a new directory
#   exec SANDBOX COMMAND         runs the shell line COMMAND in the copy; OFFLOAD_ROOT names the copy
#   download SANDBOX PAIR...     copies files out; a PAIR is PATH_THERE:PATH_HERE, the latter absolute
#   destroy SANDBOX              removes the directory
#
# Sandboxes are made in $OFFLOAD_SANDBOX_DIR, or $TMPDIR, or /tmp.
set -eu

fail() {
    printf 'tempdir_sandbox.sh: %s\n' "$1" >&2
    exit 2
}

sandbox() {
    # Only what `create` made is ever entered or removed.
    [ -f "$1/.offload-sandbox" ] || fail "there is no sandbox at $1"
}

[ $# -gt 0 ] || fail "say what to do: prepare, create, exec, download or destroy"
action=$1
shift

case $action in
prepare)
    cd -- "${1:-.}"
    pwd -P
    ;;
create)
    source=${1:-.}
    base=${OFFLOAD_SANDBOX_DIR:-${TMPDIR:-/tmp}}
    dir=$(mktemp -d "$base/offload-sandbox.XXXXXX")
    mkdir "$dir/files"
    if ! cp -a -- "$source/." "$dir/files/"; then
        rm -rf -- "$dir"
        fail "cannot copy $source to $dir"
    fi
    : >"$dir/.offload-sandbox"
    printf '%s\n' "$dir"
    ;;
exec)
    [ $# -eq 2 ] || fail "exec takes a sandbox and one command line"
    sandbox "$1"
    cd -- "$1/files"
    OFFLOAD_ROOT=$(pwd)
    export OFFLOAD_ROOT
    exec /bin/sh -c "$2"
    ;;
download)
    [ $# -ge 1 ] || fail "download takes a sandbox and pairs of paths"
    sandbox "$1"
    cd -- "$1/files"
    shift
    for pair in "$@"; do
        # The path here begins at the last `:/`.
        there=${pair%:/*}
        here=${pair#"$there":}
        mkdir -p -- "$(dirname -- "$here")"
        cp -a -- "$there" "$here"
    done
    ;;
destroy)
    [ $# -eq 1 ] || fail "destroy takes a sandbox"
    sandbox "$1"
    rm -rf -- "$1"
    ;;
*)
    fail "unknown action $action: use prepare, create, exec, download or destroy"
    ;;
esac
