#!/bin/sh
# Runs a command with what the tests of the provider `docker` need: a Docker daemon, and in OFFLOAD_TEST_IMAGE the name
# of a small image with Python and pytest. Where that cannot be had, says why in one line and runs the command without;
# those tests then skip themselves. With the word `docker` in OFFLOAD_TEST_REQUIRE, that is a failure instead.
set -eu
dir=$PWD/target/docker
image=offload-test:python

without() {
    case " ${OFFLOAD_TEST_REQUIRE:-} " in
    *" docker "*)
        echo "docker: OFFLOAD_TEST_REQUIRE demands its tests, and they cannot run: $1" >&2
        exit 1
        ;;
    esac
    echo "docker: its tests are skipped: $1" >&2
    shift
    "$@"
    exit
}

for program in docker mmdebstrap; do
    command -v $program >/dev/null || without "there is no $program (apt-get install docker.io mmdebstrap)" "$@"
done
mkdir -p "$dir"

if ! docker version >/dev/null 2>&1; then
    command -v dockerd >/dev/null || without "no Docker daemon answers, and there is no dockerd to start" "$@"
    run=$(mktemp -d)
    export DOCKER_HOST="unix://$run/docker.sock"
    dockerd --host "$DOCKER_HOST" --data-root "$dir/data" --exec-root "$run/exec" --pidfile "$run/pid" \
        >"$dir/dockerd.log" 2>&1 &
    dockerd=$!
    trap 'kill $dockerd 2>/dev/null; wait $dockerd 2>/dev/null; rm -rf "$run"' EXIT
    trap 'exit 130' INT TERM
    tries=0
    until docker version >/dev/null 2>&1; do
        tries=$((tries + 1))
        if ! kill -0 $dockerd 2>/dev/null || [ $tries -gt 300 ]; then
            kill $dockerd 2>/dev/null || true
            why=$(grep -v 'level=\(info\|debug\)' "$dir/dockerd.log" | tail -n 1)
            unset DOCKER_HOST
            trap - EXIT
            without "dockerd does not start here: $why" "$@"
        fi
        sleep 0.1
    done
fi

if ! docker image inspect $image >/dev/null 2>&1; then
    if ! [ -e "$dir/debian.tar" ]; then
        . /etc/os-release
        mmdebstrap --quiet --variant=extract --include=dash,coreutils,tar,libc-bin,python3,python3-pytest \
            "${VERSION_CODENAME:-bookworm}" "$dir/part.tar" >"$dir/mmdebstrap.log" 2>&1 ||
            without "no image could be made: $(tail -n 1 "$dir/mmdebstrap.log")" "$@"
        mv "$dir/part.tar" "$dir/debian.tar"
    fi
    why=$(docker import "$dir/debian.tar" $image-bare 2>&1) || without "no image could be imported: $why" "$@"
    # What the installation of the packages would have done.
    docker rm --force offload-test >/dev/null 2>&1 || true
    why=$(docker run --name offload-test $image-bare /bin/sh -c '
        printf "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\n" >/etc/passwd
        printf "root:x:0:\ndaemon:x:1:\n" >/etc/group
        python3 -m compileall -q /usr/lib/python3 /usr/lib/python3.* >/dev/null || :' 2>&1) ||
        without "no container can be started: $(echo "$why" | tail -n 1)" "$@"
    docker commit offload-test $image >/dev/null
    docker rm offload-test >/dev/null
fi
# That the daemon answers does not mean that it may start anything.
if ! why=$(docker run --rm --log-driver none $image /bin/sh -c : 2>&1); then
    without "no container can be started: $(echo "$why" | tail -n 1)" "$@"
fi
export OFFLOAD_TEST_IMAGE=$image
"$@"
