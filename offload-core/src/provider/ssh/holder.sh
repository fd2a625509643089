# Stands for a run on this host for as long as the connection lasts on which it was started: ends commands on demand, and
# when its input ends, or nothing has been heard for long, everything that was started, and removes the run's directory.
# In: $dir (for everything of Offload's), $project, $run (names below), $number (of the connection), $nonce,
# $patience (s), $tidy (empty: what dead runs have left stays).
umask 077
PATH=$PATH:/usr/sbin:/sbin
printf '\036%s %s\n' "$nonce" "$$"

fail() {
    echo "unusable $*"
    exit 1
}

finish() {
    # From now on nothing begins.
    mv "$own/pids" "$own/ended"
    for command in "$own"/ended/*; do
        [ -e "$command" ] && signal KILL "${command##*/}"
    done
    remove "$own"
    # Whoever is the last on this host.
    if rmdir "$dir/$project/$run/connections" 2>/dev/null; then
        remove_run "$dir/$project/$run"
        # If nothing is kept for a next run.
        rmdir "$dir/$project" 2>/dev/null
    fi
}

mkdir -p "$dir/$project" || fail directory
own=$dir/$project/$run/connections/$number
new=$dir/$project/new-$nonce
mkdir "$new" && printf "$run_mark%s\n" "${new##*/}" "$run" >"$new/mark" && mkdir "$new/pids" && echo $$ >"$new/pid" ||
    fail directory
if [ "$number" = 0 ]; then
    mkdir "$new/connections" && mkdir "$new/connections/0" && mv "$new/pids" "$new/pid" "$new/connections/0" &&
        mv "$new" "$dir/$project/$run" || fail directory
    [ -z "$tidy" ] || remove_dead "$dir/$project" >/dev/null
else
    mv "$new" "$own" || fail directory
fi
printf "$project_mark%s\n" "$project" >"$dir/$project/used"

echo "dir $dir"
if [ "$number" = 0 ]; then
    echo "user $(id -u) $(id -g)"
    echo "cpus $(getconf _NPROCESSORS_ONLN 2>/dev/null || nproc 2>/dev/null || echo 1)"
    echo "system $(uname -s) $(uname -m)"
    if [ "$(id -u)" = 0 ]; then
        unshare --mount true 2>/dev/null && nsenter --help >/dev/null 2>&1 && echo "views root"
    elif unshare --user --map-root-user --mount \
        unshare --user --map-user="$(id -u)" --map-group="$(id -g)" true 2>/dev/null; then
        nsenter --help >/dev/null 2>&1 && echo "views user"
    fi
    command -v flock >/dev/null && echo "locks"
fi
echo ready

(
    exec </dev/null >/dev/null 2>&1
    while sleep "$patience"; do
        [ -e "$own/heard" ] || break
        rm -f "$own/heard"
    done
    finish
    kill -s KILL 0
) &

while read -r verb which; do
    case $verb in
        alive) : >"$own/heard" ;;
        end) signal TERM "$which" ;;
        kill) signal KILL "$which"; rm -f "$own/pids/$which" ;;
        quit) break ;;
    esac
done
exec 2>/dev/null
finish
kill -s KILL 0
